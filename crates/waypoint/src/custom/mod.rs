//! CUSTOM policies: external authorizers ("providers") are asked, over gRPC or HTTP, and all of them have to allow
//! (`spec/authorization.md` 2.9).
//!
//! Which provider a request needs is the policy engine's to say; here it is asked. A provider sees the request before a
//! token is looked at, and may change its headers for those who judge it next. What can't be asked is denied, unless the
//! provider's `failOpen` says otherwise; that never covers what a client can bring about by itself (a body that is too
//! large or doesn't come, too many questions at once).

mod answer;
mod body;
mod changes;
mod client;
mod envoy;
mod exchange;
mod grpc;
mod http;
mod reach;

use std::{sync::Arc, time::Instant};

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, uri::PathAndQuery};
use ambit_mesh::{View, view::Authorizer};
use ambit_policy::{Decision, HeaderLines};
use ambit_telemetry::{CheckOutcome, ProviderCheck};
use hyper::body::Incoming;

use self::{
    answer::{Answer, Denial},
    client::{Client, Failure},
};
pub(crate) use self::{body::ReadAhead, changes::ToClient, client::Clients};
use crate::{
    limits::MAX_PROVIDERS_ASKED,
    record::{Entry, micros_since, refusal},
    request::{CLIENT_MAY_NOT_SEND, Checked},
    respond::{self, Style},
    session::{Session, Standing},
    shared::Shared,
    upstream::{Body, Stream},
};

/// Connects to a place outside of a request's way, as to a provider.
///
/// # Errors
/// Why it can't be reached.
pub(crate) async fn connect(shared: &Shared, view: &View, to: &Authorizer) -> Result<Stream, String> {
    reach::connect(shared, view, to).await.map(|(_, stream)| stream)
}

/// The providers that have allowed a request or connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Approvals(Vec<Arc<str>>);

/// A request before providers changed it, and those that allowed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) target: PathAndQuery,
    pub(crate) headers: HeaderMap,
    pub(crate) approvals: Approvals,
}

/// What comes of a request that providers have allowed, besides the request itself.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    read_ahead: Option<ReadAhead>,
    to_client: Option<ToClient>,
}

/// A request that goes no further.
#[derive(Debug)]
pub(crate) enum Refused {
    /// By a policy.
    Denied,
    /// What was asked for isn't served here any more.
    Unavailable,
    /// With this answer.
    With(Box<Denial>),
}

/// Asks every provider that CUSTOM policies want asked about a request, one after the other, and makes the changes that
/// they want. Policies may change meanwhile, so what holds afterwards is given back.
///
/// # Errors
/// The request is refused; the entry says why.
pub(crate) async fn authorize(
    session: &Session,
    mut standing: Standing,
    mut checked: Checked,
    request: &mut Request<Incoming>,
    entry: &mut Entry,
) -> Result<(Standing, Checked, Passed), Refused> {
    let mut passed = Passed::default();
    // A token may be taken away later: CUSTOM policies go on to judge what was sent.
    checked.keep_as_sent();
    for _ in 0..MAX_PROVIDERS_ASKED {
        let start = Instant::now();
        let decision = standing.decide_custom(&checked);
        if decision.is_allowed() {
            return Ok((standing, checked, passed));
        }
        entry.decided(&decision, Some(micros_since(start)));
        let Some(provider) = decision.ask.clone() else { return Err(Refused::Denied) };
        prepare(session, request);
        entry.failed(&format!("the client went away before provider `{provider}` answered"));
        let question = Question { session, provider: &provider, decision: &decision };
        let changes = question.about_request(&standing, &checked, request, &mut passed, entry).await?;
        if let Some(asked) = &mut checked.asked {
            Arc::make_mut(asked).approvals.0.push(provider);
        }
        changes.to_upstream.apply(request.headers_mut());
        checked.headers = request.headers().clone();
        if let Some(target) = changes.target {
            checked.target = target;
        }
        if let Some(to_client) = changes.to_client {
            passed.to_client.get_or_insert_default().extend(to_client);
        }
        standing = session.standing().map_err(|refusal| {
            entry.decided(&refusal, None);
            Refused::Unavailable
        })?;
    }
    entry.decided(&refusal(&format!("more than {MAX_PROVIDERS_ASKED} providers would have to be asked")), None);
    Err(Refused::Denied)
}

/// Asks every provider that CUSTOM policies want asked about a connection. Nothing if it is denied; the entry says why.
pub(crate) async fn authorize_connection(session: &Session, entry: &mut Entry) -> Option<(Standing, Approvals)> {
    let mut approvals = Approvals::default();
    for _ in 0..MAX_PROVIDERS_ASKED {
        let start = Instant::now();
        let standing = session.standing().inspect_err(|refusal| entry.decided(refusal, None)).ok()?;
        let decision = standing.decide_connection(&approvals);
        entry.decided(&decision, Some(micros_since(start)));
        if decision.is_allowed() {
            standing.observe(None, &approvals, entry);
            return Some((standing, approvals));
        }
        let provider = decision.ask.clone()?;
        entry.failed(&format!("the client went away before provider `{provider}` answered"));
        let question = Question { session, provider: &provider, decision: &decision };
        question.about_connection(&standing, entry).await?;
        approvals.0.push(provider);
    }
    entry.decided(&refusal(&format!("more than {MAX_PROVIDERS_ASKED} providers would have to be asked")), None);
    None
}

/// One provider to be asked, because of one decision.
struct Question<'a> {
    session: &'a Session,
    provider: &'a Arc<str>,
    decision: &'a Decision,
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A provider is shown what the application will be: without what clients may not send, and with what is added.
fn prepare(session: &Session, request: &mut Request<Incoming>) {
    let headers = request.headers_mut();
    for name in CLIENT_MAY_NOT_SEND {
        headers.remove(name);
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    headers.entry(X_REQUEST_ID).or_insert_with(|| session.shared.random.request_id());
}

// === impl Approvals ===

impl Approvals {
    /// Nobody's.
    pub(crate) const fn none() -> Self {
        Self(Vec::new())
    }

    /// As the policy engine takes them.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|name| &**name).collect()
    }
}

// === impl Asked ===

impl HeaderLines for Asked {
    fn lines(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.get_all(name).iter().for_each(|value| each(value.as_bytes()));
    }
}

// === impl Passed ===

impl Passed {
    /// What was read of the body, and what the response gets.
    pub(crate) fn parts(self) -> (Option<ReadAhead>, Option<ToClient>) {
        (self.read_ahead.filter(|read| !read.is_empty()), self.to_client)
    }
}

// === impl Refused ===

impl Refused {
    /// The answer to the client.
    pub(crate) fn response(self, style: Style) -> Response<Body> {
        match self {
            Self::Denied => respond::denied(style),
            Self::Unavailable => respond::unavailable(style),
            Self::With(denial) => denial.response(style),
        }
    }
}

// === impl Question ===

impl Question<'_> {
    async fn about_request(
        &self,
        standing: &Standing,
        checked: &Checked,
        request: &mut Request<Incoming>,
        passed: &mut Passed,
        entry: &mut Entry,
    ) -> Result<changes::Changes, Refused> {
        let start = Instant::now();
        let asked = match self.client(standing) {
            Ok(client) => {
                let answer = self.exchange(&client, standing, checked, request, passed).await;
                self.settle(answer, client.authorizer(), start, entry)
            }
            Err(reason) => self.fail(Failure::Unknown(reason), None, start, entry),
        };
        match asked {
            Settled::Allowed(changes) => Ok(*changes),
            Settled::Refused(denial) => Err(Refused::With(denial)),
        }
    }

    /// Nothing if it is denied.
    async fn about_connection(&self, standing: &Standing, entry: &mut Entry) -> Option<()> {
        let start = Instant::now();
        let settled = match self.client(standing) {
            Ok(client) => {
                let answer = match client.slot() {
                    Ok(_slot) => client.within_time(grpc::ask_about_connection(&client, self.session, standing)).await,
                    Err(failure) => Err(failure),
                };
                self.settle(answer, client.authorizer(), start, entry)
            }
            Err(reason) => self.fail(Failure::Unknown(reason), None, start, entry),
        };
        matches!(settled, Settled::Allowed(_)).then_some(())
    }

    fn client(&self, standing: &Standing) -> Result<Arc<Client>, String> {
        let config = &self.session.shared.config;
        let bundle = standing.view.waypoint(&config.namespace, &config.name);
        match bundle.and_then(|bundle| bundle.authorizers.get(&**self.provider)) {
            Some(Ok(authorizer)) => Ok(self.session.shared.authorizers.of(authorizer)),
            Some(Err(reason)) => Err(reason.to_string()),
            None => Err("its settings haven't arrived yet".to_owned()),
        }
    }

    async fn exchange(
        &self,
        client: &Arc<Client>,
        standing: &Standing,
        checked: &Checked,
        request: &mut Request<Incoming>,
        passed: &mut Passed,
    ) -> Result<Answer, Failure> {
        let _slot = client.slot()?;
        let body = body::of(client, request, &mut passed.read_ahead).await?;
        let check = exchange::Check { session: self.session, standing, checked, headers: request.headers(), body };
        client.within_time(exchange::ask(client, &check)).await
    }

    /// What an answer, or none, comes to; the entry is told.
    fn settle(
        &self,
        answer: Result<Answer, Failure>,
        authorizer: &Authorizer,
        start: Instant,
        entry: &mut Entry,
    ) -> Settled {
        match answer {
            Ok(Answer::Allowed(changes)) => {
                self.record(CheckOutcome::Allowed, None, start, entry);
                Settled::Allowed(changes)
            }
            Ok(Answer::Denied(denial)) => {
                self.record(CheckOutcome::Denied, None, start, entry);
                self.deny(&format!("denied it (status {})", denial.status().as_u16()), entry);
                Settled::Refused(denial)
            }
            Err(failure) => self.fail(failure, Some(authorizer), start, entry),
        }
    }

    fn fail(&self, failure: Failure, authorizer: Option<&Authorizer>, start: Instant, entry: &mut Entry) -> Settled {
        let reason: Arc<str> = failure.to_string().into();
        tracing::debug!(waypoint = %self.session.shared.name, provider = %self.provider, %reason, "provider gave no answer");
        if failure.may_be_ignored() && authorizer.is_some_and(|authorizer| authorizer.fail_open) {
            self.record(CheckOutcome::FailedOpen, Some(reason), start, entry);
            return Settled::Allowed(Box::default());
        }
        self.deny(&format!("gave no answer: {reason}"), entry);
        self.record(CheckOutcome::Failed, Some(reason), start, entry);
        let status = failure.status().unwrap_or_else(|| {
            let on_error = authorizer.and_then(|authorizer| StatusCode::from_u16(authorizer.status_on_error).ok());
            on_error.unwrap_or(StatusCode::FORBIDDEN)
        });
        Settled::Refused(Box::new(Denial::bare(status)))
    }

    fn record(&self, outcome: CheckOutcome, reason: Option<Arc<str>>, start: Instant, entry: &mut Entry) {
        entry.checked(ProviderCheck {
            provider: Arc::clone(self.provider),
            policy: self.decision.policy.clone(),
            rule: self.decision.rule,
            outcome,
            reason,
            took_us: micros_since(start),
        });
    }

    fn deny(&self, what: &str, entry: &mut Entry) {
        let policy = self.decision.policy.as_ref().map(ToString::to_string).unwrap_or_default();
        let rule = self.decision.rule.unwrap_or_default();
        let reason = format!("rule {rule} of {policy} wants provider `{}` asked, which {what}", self.provider);
        entry.decided(&Decision { ask: None, reason: reason.into(), ..self.decision.clone() }, None);
    }
}

/// What an answer comes to.
enum Settled {
    Allowed(Box<changes::Changes>),
    Refused(Box<Denial>),
}
