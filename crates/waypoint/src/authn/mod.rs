//! RequestAuthentication: whose tokens are believed, and what a request turns into by one (`spec/control-plane.md` 3.1).
//!
//! A token that is missing is no fault; one that is there must be valid. With several rules it is enough that one of them
//! finds a valid token where it looks for it.

mod cache;
mod locate;
mod outcome;
mod token;
mod verify;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ambit_mesh::view::{Authentication, TokenRule};
use http::{Method, Request, header};

pub(crate) use self::{cache::VerifiedTokens, outcome::Refused};
use self::{
    cache::{CacheKey, Verified},
    locate::Found,
    token::{Failure, Token},
};
use crate::request::Checked;

/// Verifies a request's token, if it has one: its claims become facts, and it leaves the request unless it is to be
/// forwarded.
///
/// # Errors
/// [`Refused`] if there is a token and no rule finds it valid.
pub(crate) fn authenticate<B>(
    authentication: &Authentication,
    verified: &VerifiedTokens,
    request: &mut Request<B>,
    checked: &mut Checked,
) -> Result<(), Refused> {
    if authentication.outputs.iter().any(|name| checked.headers.contains_key(&**name)) {
        checked.keep_as_sent();
    }
    outcome::drop_outputs(authentication, request.headers_mut(), checked);
    if is_preflight(checked) {
        return Ok(());
    }
    let mut found = locate::tokens(authentication, checked);
    if found.is_empty() {
        return Ok(());
    }
    // A clock before 1970 can't vouch for any token that ends.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |since| since.as_secs());
    let mut worst: Option<Refused> = None;
    for (index, rule) in authentication.rules.iter().enumerate() {
        for location in &rule.locations {
            let Some(token) = found.iter_mut().find(|found| found.location == *location) else { continue };
            match believed(token, index, authentication, verified, now) {
                Ok(believed) => {
                    let location = &authentication.locations[*location];
                    let (claims, payload) = (&believed.claims, token.payload());
                    checked.keep_as_sent();
                    outcome::apply(rule, location, claims, payload, request.headers_mut(), checked);
                    return Ok(());
                }
                Err(failure) if worst.as_ref().is_none_or(|worst| failure.outweighs(worst.failure)) => {
                    worst = Some(Refused::new(failure, rule, checked));
                }
                Err(_) => {}
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

/// A browser's question ahead of a request of another origin: it never carries a token.
fn is_preflight(checked: &Checked) -> bool {
    let has = |name| checked.headers.get(name).is_some_and(|value: &header::HeaderValue| !value.is_empty());
    checked.method == Method::OPTIONS && has(header::ORIGIN) && has(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What a token says, if this rule believes it.
fn believed(
    found: &mut Found,
    index: usize,
    authentication: &Authentication,
    verified: &VerifiedTokens,
    now: u64,
) -> Result<Arc<Verified>, Failure> {
    let rule = &authentication.rules[index];
    let text = found.text.as_deref().map_err(|failure| *failure)?;
    let key = *found.key.get_or_insert_with(|| CacheKey::new(text, authentication.generation, found.location));
    if let Some(known) = found.known.get_or_insert_with(|| verified.get(&key)) {
        // Where the token stands, the rules before this one have refused it.
        return if known.rule == index {
            known.times.check(now).map(|()| Arc::clone(known))
        } else {
            Err(Failure::UnknownIssuer)
        };
    }
    let token =
        found.parsed.get_or_insert_with(|| Token::parse(text).map(Box::new)).as_ref().map_err(|failure| *failure)?;
    check(token, rule, now)?;
    let mut claims = token.claims.clone();
    token::split_lists(&mut claims, &rule.space_delimited);
    let believed = Arc::new(Verified { rule: index, claims: Arc::new(claims), times: token.times });
    verified.put(key, &believed, text.len());
    Ok(believed)
}

/// The checks in Envoy's order: what costs a signature check comes last.
fn check(token: &Token, rule: &TokenRule, now: u64) -> Result<(), Failure> {
    if rule.issuer.as_deref().is_some_and(|issuer| token.issuer() != Some(issuer)) {
        return Err(Failure::UnknownIssuer);
    }
    token.times.check(now)?;
    if !rule.audiences.is_empty() && !token.audiences().any(|audience| rule.audiences.iter().any(|a| **a == *audience))
    {
        return Err(Failure::AudienceNotAllowed);
    }
    let keys = rule.keys.as_ref().map_err(|_| Failure::NoKeys)?;
    verify::verify(token, keys)
}
