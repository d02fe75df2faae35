//! Tokens: which are believed, what becomes of a request by them, and what a client is told whose token isn't.

use std::time::{SystemTime, UNIX_EPOCH};

use ambit_policy::Verdict;
use ambit_xds::waypoint::{FetchedKeys, KeysOutcome, RequestAuthentication};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    backend::Raw,
    issuer::{self, Issuer, encode},
    mesh::{Mesh, NAMESPACE, Shape, allow_all, exchange, header, policy, soon, status},
};

pub const ISSUER: &str = "https://issuer.example";
const ALGORITHMS: [&str; 10] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"];

/// Seconds since 1970, and so many more.
pub fn at(offset: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    i64::try_from(now).expect("before the end of time") + offset
}

/// A RequestAuthentication of this name with these rules.
pub fn tokens(name: &str, rules: Value) -> RequestAuthentication {
    let object = json!({"namespace": NAMESPACE, "name": name, "spec": {"jwtRules": rules}});
    RequestAuthentication {
        namespace: NAMESPACE.into(),
        name: name.into(),
        json: object.to_string().into_bytes(),
        ..RequestAuthentication::default()
    }
}

pub fn rule(issuer: &Issuer, more: Value) -> Value {
    let mut rule = json!({"issuer": ISSUER, "jwks": issuer.key_set().to_string()});
    for (name, value) in more.as_object().expect("an object") {
        rule[name] = value.clone();
    }
    rule
}

/// A mesh whose service believes tokens by these rules, with the usual client's tunnel.
async fn mesh(rules: Value, policies: &[Value]) -> (Raw, Mesh, ambit_hbone::Tunnel) {
    let app = Raw::start().await;
    let mesh = Mesh::start(Shape::of(app.address)).await;
    mesh.authenticated(policies, vec![tokens("tokens", rules)]);
    let tunnel = mesh.tunnel("otel-collector").await;
    (app, mesh, tunnel)
}

fn get(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: mlflow:5000\r\n{lines}\r\n")
}

fn bearer(token: &str) -> String {
    get("/", &format!("authorization: Bearer {token}\r\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_algorithm_is_verified_by_a_key_of_its_kind_only() {
    let issuers: Vec<_> = ALGORITHMS.iter().map(|name| Issuer::new(name, name)).collect();
    let keys: Vec<_> = issuers.iter().map(Issuer::public_key).collect();
    let set = json!({"keys": keys}).to_string();
    let demand = policy(json!({"action": "ALLOW", "rules": [
        {"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/otel")]}}]}
    ]}));
    let (_app, _mesh, mut otel) = mesh(json!([{"issuer": ISSUER, "jwks": set}]), &[demand]).await;
    let claims = json!({"iss": ISSUER, "sub": "otel", "exp": at(300)});
    for issuer in &issuers {
        let token = issuer.sign(&claims);
        let (head, _) = exchange(&mut otel, &bearer(&token)).await;
        assert_eq!(status(&head), 200, "{}", issuer.algorithm);
        // One bit of each part makes it another token.
        for part in 0..3 {
            let (head, body) = exchange(&mut otel, &bearer(&issuer::tampered(&token, part))).await;
            assert_eq!(status(&head), 401, "{} {part} {body:?}", issuer.algorithm);
        }
        // A signature of this key under the name of another algorithm, with this key's name.
        for other in ALGORITHMS.iter().filter(|other| **other != issuer.algorithm) {
            let forged = issuer.sign_as(&json!({"alg": other, "kid": issuer.algorithm}), &claims);
            let (head, _) = exchange(&mut otel, &bearer(&forged)).await;
            assert_eq!(status(&head), 401, "{} as {other}", issuer.algorithm);
        }
    }
    // The public key as the secret of an HMAC, and no signature at all.
    let public = issuers[0].public_key()["n"].as_str().expect("a modulus").to_owned();
    for header in [json!({"alg": "HS256", "kid": "RS256"}), json!({"alg": "none"})] {
        let signed = format!("{}.{}", encode(&header.to_string()), encode(&claims.to_string()));
        let signature = if header["alg"] == "none" { String::new() } else { issuer::hmac(public.as_bytes(), &signed) };
        let (head, body) = exchange(&mut otel, &bearer(&format!("{signed}.{signature}"))).await;
        assert_eq!(status(&head), 401);
        assert_eq!(body, b"Jwt header [alg] is not supported");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_told_what_is_wrong_with_its_token_in_envoys_words() {
    let (issuer, stranger) = (Issuer::new("ES256", "k1"), Issuer::new("ES256", "k1"));
    let rules = json!([rule(&issuer, json!({"audiences": ["mlflow", "https://other/"]}))]);
    let (app, mut mesh, mut otel) = mesh(rules, &[allow_all()]).await;
    let good = json!({"iss": ISSUER, "sub": "otel", "aud": "mlflow", "exp": at(300)});
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        issuer.sign(&claims)
    };
    for token in [
        issuer.sign(&good),
        with("aud", json!(["x", "http://other"])),
        with("exp", json!(at(-30))),
        with("nbf", json!(at(30))),
        issuer.sign_as(&json!({"alg": "ES256"}), &good),
    ] {
        let (head, body) = exchange(&mut otel, &bearer(&token)).await;
        assert_eq!(status(&head), 200, "{}", String::from_utf8_lossy(&body));
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    for (lines, why) in [("", "no token is no fault"), ("authorization: Basic b3RlbDpzZWNyZXQ=\r\n", "another scheme")]
    {
        let (head, _) = exchange(&mut otel, &get("/", lines)).await;
        assert_eq!(status(&head), 200, "{why}");
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    let believed = app.seen().len();

    let malformed = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    for (token, expected, text) in [
        (with("exp", json!(at(-90))), 401, "Jwt is expired"),
        (with("nbf", json!(at(90))), 401, "Jwt not yet valid"),
        (with("iss", json!("https://elsewhere")), 401, "Jwt issuer is not configured"),
        (with("aud", json!("another")), 403, "Audiences in Jwt are not allowed"),
        (stranger.sign(&good), 401, "Jwt verification fails"),
        (
            issuer.sign_as(&json!({"alg": "ES256", "kid": "k2"}), &good),
            401,
            "Jwks doesn't have key to match kid or alg from Jwt",
        ),
        ("a.b".to_owned(), 401, malformed),
        (String::from("x"), 401, malformed),
    ] {
        let (head, body) =
            exchange(&mut otel, &get("/a?b=secret", &format!("authorization: Bearer {token}\r\n"))).await;
        assert_eq!((status(&head), String::from_utf8_lossy(&body).as_ref()), (expected, text), "{head}");
        let challenge = r#"Bearer realm="http://mlflow:5000/a", error="invalid_token""#;
        assert_eq!(header(&head, "www-authenticate"), Some(challenge));
        assert_eq!(header(&head, "content-type"), Some("text/plain"));
        let record = mesh.expect_record(Verdict::Deny, Some(expected)).await;
        assert_eq!(&*record.reason, format!("RequestAuthentication `{NAMESPACE}/tokens`: {text}"));
    }
    let grpc = "POST /svc/Method HTTP/1.1\r\nhost: mlflow\r\ncontent-type: application/grpc\r\nauthorization: Bearer x\r\n\
        content-length: 0\r\n\r\n";
    let (head, _) = exchange(&mut otel, grpc).await;
    assert_eq!((status(&head), header(&head, "grpc-status")), (200, Some("16")), "{head}");
    assert_eq!(header(&head, "grpc-message"), Some(malformed));
    assert_eq!(app.seen().len(), believed, "nothing of these arrives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_token_leaves_the_request_and_its_claims_come_in() {
    let issuer = Issuer::new("ES256", "k1");
    let outputs = json!({
        "outputPayloadToHeader": "X-Payload",
        "outputClaimToHeaders": [{"header": "x-sub", "claim": "sub"}, {"header": "x-team", "claim": "org.team"}],
    });
    let (app, _mesh, mut otel) = mesh(json!([rule(&issuer, outputs)]), &[allow_all()]).await;
    let claims = json!({"iss": ISSUER, "sub": "otel", "org": {"team": "a"}, "exp": at(300)});
    let token = issuer.sign(&claims);
    let payload = token.split('.').nth(1).expect("three parts");

    let request =
        get("/", &format!("authorization: Bearer {token}\r\nx-sub: admin\r\nconnection: x-sub, x-payload\r\n"));
    assert_eq!(status(&exchange(&mut otel, &request).await.0), 200);
    let seen = app.seen().pop().expect("it arrived");
    assert!(!seen.contains("authorization"), "{seen}");
    assert!(seen.contains("\r\nx-sub: otel\r\n") && seen.contains("\r\nx-team: a\r\n"), "{seen}");
    assert!(seen.contains(&format!("\r\nx-payload: {payload}\r\n")), "{seen}");

    // Nobody without a token says what only a token may say.
    let request = get("/", "x-sub: admin\r\nX-Team: b\r\nx-payload: e30\r\n");
    assert_eq!(status(&exchange(&mut otel, &request).await.0), 200);
    let seen = app.seen().pop().expect("it arrived");
    assert!(!seen.contains("x-sub") && !seen.contains("x-team") && !seen.contains("x-payload"), "{seen}");

    let request = get(&format!("/a?x=%20&access_token={token}&y"), "");
    assert_eq!(status(&exchange(&mut otel, &request).await.0), 200);
    let seen = app.seen().pop().expect("it arrived");
    assert!(seen.starts_with("GET /a?x=%20&y HTTP/1.1\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_stand_where_the_rule_says() {
    let issuer = Issuer::new("EdDSA", "k1");
    let places = json!({
        "fromHeaders": [{"name": "X-Jwt"}, {"name": "x-auth", "prefix": "Token "}],
        "fromParams": ["t"],
        "fromCookies": ["session"],
        "forwardOriginalToken": true,
    });
    let demand = policy(json!({"action": "ALLOW", "rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}));
    let (app, _mesh, mut otel) = mesh(json!([rule(&issuer, places)]), &[demand]).await;
    let token = issuer.sign(&json!({"iss": ISSUER, "sub": "otel", "exp": at(300)}));
    for request in [
        get("/", &format!("x-jwt: {token}\r\n")),
        get("/", &format!("x-auth: Token {token}\r\n")),
        get(&format!("/?t={token}"), ""),
        get("/", &format!("cookie: a=b; session={token}\r\n")),
        get("/", &format!("x-jwt: bad\r\nx-auth: Token {token}\r\n")),
    ] {
        assert_eq!(status(&exchange(&mut otel, &request).await.0), 200, "{request}");
        assert!(app.seen().pop().expect("it arrived").contains(&token), "forwarded");
    }
    for (request, expected) in [
        // Not a place of this rule, so there is no token; the policy demands one.
        (bearer(&token), 403),
        (get(&format!("/?access_token={token}"), ""), 403),
        (get("/", &format!("x-jwt: {token}\r\nx-jwt: {token}\r\n")), 401),
        (get(&format!("/?t={token}&t={token}"), ""), 401),
        (get("/", &format!("cookie: session={token}; session=x\r\n")), 401),
        (get("/", "x-jwt:\r\n"), 401),
    ] {
        assert_eq!(status(&exchange(&mut otel, &request).await.0), expected, "{request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_rules_one_that_believes_is_enough() {
    let (one, two) = (Issuer::new("ES256", "k"), Issuer::new("ES256", "k"));
    let rules = json!([
        {"issuer": "https://b", "jwks": two.key_set().to_string(), "fromHeaders": [{"name": "x-two"}]},
        {"issuer": "https://a", "jwks": one.key_set().to_string()},
        {"issuer": "https://c", "jwks": two.key_set().to_string()},
    ]);
    let only_a = policy(json!({"action": "DENY", "rules": [
        {"from": [{"source": {"notRequestPrincipals": ["https://a/*"]}}], "to": [{"operation": {"paths": ["/a"]}}]}
    ]}));
    let (_app, _mesh, mut otel) = mesh(rules, &[only_a]).await;
    let token = |issuer: &Issuer, name: &str, exp: i64| issuer.sign(&json!({"iss": name, "sub": "s", "exp": at(exp)}));
    let (a, b, c) = (token(&one, "https://a", 300), token(&two, "https://b", 300), token(&two, "https://c", 300));
    let old_c = token(&two, "https://c", -300);
    let both = |bearer: &str, other: &str| format!("authorization: Bearer {bearer}\r\nx-two: {other}\r\n");
    for (target, lines, expected, text) in [
        ("/", String::new(), 200, "ok"),
        ("/", format!("authorization: Bearer {a}\r\n"), 200, "ok"),
        ("/", format!("authorization: Bearer {c}\r\n"), 200, "ok"),
        ("/", format!("x-two: {b}\r\n"), 200, "ok"),
        ("/", both(&a, "bad"), 200, "ok"),
        ("/", both("bad", &b), 200, "ok"),
        ("/", format!("x-two: {a}\r\n"), 401, "Jwt issuer is not configured"),
        ("/", format!("authorization: Bearer {b}\r\n"), 401, "Jwt issuer is not configured"),
        ("/", format!("authorization: Bearer {old_c}\r\n"), 401, "Jwt is expired"),
        // The claims are those of the first rule that believes, by issuer.
        ("/a", both(&a, &b), 200, "ok"),
        ("/a", both(&c, &b), 403, "RBAC: access denied"),
        ("/a", format!("authorization: Bearer {c}\r\n"), 403, "RBAC: access denied"),
    ] {
        // Twice: the second time what is remembered of the token decides the same.
        for _ in 0..2 {
            let (head, body) = exchange(&mut otel, &get(target, &lines)).await;
            assert_eq!((status(&head), String::from_utf8_lossy(&body).as_ref()), (expected, text), "{target} {lines}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_demand_a_principal_and_a_claim() {
    let issuer = Issuer::new("RS256", "k1");
    let rules = json!([rule(&issuer, json!({"spaceDelimitedClaims": ["groups"]}))]);
    let demand = policy(json!({"action": "ALLOW", "rules": [{
        "from": [{"source": {"principals": ["cluster.local/ns/kagenti-system/sa/otel-collector"]}}],
        "when": [
            {"key": "request.auth.claims[scope]", "values": ["traces:write"]},
            {"key": "request.auth.claims[groups]", "values": ["telemetry"]},
            {"key": "request.auth.audiences", "values": ["mlflow"]},
            {"key": "request.auth.claims[org][team]", "values": ["a"]},
            {"key": "request.headers[authorization]", "notValues": ["*"]},
        ],
    }]}));
    let (_app, mesh, mut otel) = mesh(rules, &[demand]).await;
    let good = json!({"iss": ISSUER, "sub": "otel", "exp": at(300), "scope": "openid traces:write",
        "groups": "x telemetry", "aud": ["mlflow"], "org": {"team": "a"}});
    let (head, _) = exchange(&mut otel, &bearer(&issuer.sign(&good))).await;
    assert_eq!(status(&head), 200);
    for (name, value) in [
        ("scope", json!("traces:writer")),
        ("groups", json!("telemetry2")),
        ("aud", json!("other")),
        ("org", json!({"team": "b"})),
    ] {
        let mut claims = good.clone();
        claims[name] = value;
        let (head, _) = exchange(&mut otel, &bearer(&issuer.sign(&claims))).await;
        assert_eq!(status(&head), 403, "{name}");
    }
    let (head, _) = exchange(&mut otel, &get("/", "")).await;
    assert_eq!(status(&head), 403, "no token");
    let mut intruder = mesh.tunnel("intruder").await;
    let (head, _) = exchange(&mut intruder, &bearer(&issuer.sign(&good))).await;
    assert_eq!(status(&head), 403, "a stolen token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browsers_question_ahead_needs_no_token() {
    let issuer = Issuer::new("ES256", "k1");
    let (app, _mesh, mut otel) =
        mesh(json!([rule(&issuer, json!({"outputPayloadToHeader": "x-p"}))]), &[allow_all()]).await;
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: m\r\norigin: https://ui\r\naccess-control-request-method: GET\r\n\
        authorization: Bearer bad\r\nx-p: spoofed\r\n\r\n";
    assert_eq!(status(&exchange(&mut otel, preflight).await.0), 200);
    assert!(!app.seen()[0].contains("spoofed"));
    for not_one in [
        preflight.replace("OPTIONS", "GET"),
        preflight.replace("origin", "x"),
        preflight.replace("method: GET", "method:"),
    ] {
        assert_eq!(status(&exchange(&mut otel, &not_one).await.0), 401, "{not_one}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_keys_end_what_was_believed_by_the_old_ones() {
    let (old, new) = (Issuer::new("ES256", "k"), Issuer::new("ES256", "k"));
    let (_app, mesh, mut otel) = mesh(json!([rule(&old, json!({}))]), &[allow_all()]).await;
    let claims = json!({"iss": ISSUER, "sub": "otel", "exp": at(300)});
    let (before, after) = (bearer(&old.sign(&claims)), bearer(&new.sign(&claims)));
    assert_eq!(status(&exchange(&mut otel, &before).await.0), 200);
    assert_eq!(status(&exchange(&mut otel, &after).await.0), 401);
    mesh.authenticated(&[allow_all()], vec![tokens("tokens", json!([rule(&new, json!({}))]))]);
    assert_eq!(status(&exchange(&mut otel, &before).await.0), 401, "though it was remembered");
    assert_eq!(status(&exchange(&mut otel, &after).await.0), 200);
    mesh.authenticated(&[allow_all()], vec![]);
    assert_eq!(status(&exchange(&mut otel, &before).await.0), 200, "nobody looks at tokens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_keys_no_token_is_believed_and_the_record_says_why() {
    let issuer = Issuer::new("ES256", "k");
    let (_app, mut mesh, mut otel) = mesh(json!([{"issuer": ISSUER}]), &[allow_all()]).await;
    let token = bearer(&issuer.sign(&json!({"iss": ISSUER, "sub": "otel", "exp": at(300)})));
    let with = |outcome| {
        let keys = vec![FetchedKeys { rule: 0, outcome: Some(outcome) }];
        vec![RequestAuthentication { keys, ..tokens("tokens", json!([{"issuer": ISSUER}])) }]
    };
    for (authentications, why) in [
        (vec![tokens("tokens", json!([{"issuer": ISSUER}]))], "the control plane sent none"),
        (with(KeysOutcome::Failure("no answer within 5s".into())), "no answer within 5s"),
        (with(KeysOutcome::KeySet(b"<html>".to_vec())), "the key set can't be used"),
    ] {
        mesh.authenticated(&[allow_all()], authentications);
        let (head, body) = exchange(&mut otel, &token).await;
        assert_eq!((status(&head), body.as_slice()), (401, &b"Jwks remote fetch is failed"[..]));
        let record = mesh.expect_record(Verdict::Deny, Some(401)).await;
        assert!(record.reason.contains(why), "{}", record.reason);
        assert_eq!(status(&exchange(&mut otel, &get("/", "")).await.0), 200, "no token is no fault");
        mesh.expect_record(Verdict::Allow, Some(200)).await;
    }
    mesh.authenticated(&[allow_all()], with(KeysOutcome::KeySet(issuer.key_set().to_string().into_bytes())));
    assert_eq!(status(&exchange(&mut otel, &token).await.0), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_closes_its_service() {
    let app = Raw::start().await;
    let mut mesh = Mesh::start(Shape::of(app.address)).await;
    let mut otel = mesh.tunnel("otel-collector").await;
    let rejected = RequestAuthentication { rejection: "`jwksUri` is no address".into(), ..tokens("tokens", json!([])) };
    let garbled = RequestAuthentication { json: b"{".to_vec(), ..tokens("tokens", json!([])) };
    let unknown = tokens("tokens", json!([{"issuer": "i", "audience": "typo"}]));
    for authentications in [rejected, garbled, unknown] {
        let nack = mesh.try_authenticated(&[allow_all()], vec![authentications]).expect_err("refused");
        assert!(nack.to_string().contains("RequestAuthentication `kagenti-system/tokens` was rejected"), "{nack}");
        assert_eq!(status(&exchange(&mut otel, &get("/", "")).await.0), 403);
        let record = mesh.expect_record(Verdict::Deny, Some(403)).await;
        assert!(record.reason.contains("was rejected"), "{}", record.reason);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_living_stream_is_judged_with_the_claims_it_came_with() {
    let issuer = Issuer::new("ES256", "k");
    let team = |name: &str| {
        policy(
            json!({"action": "ALLOW", "rules": [{"when": [{"key": "request.auth.claims[team]", "values": [name]}]}]}),
        )
    };
    let rules = json!([rule(&issuer, json!({}))]);
    let (_app, mut mesh, mut otel) = mesh(rules.clone(), &[team("a")]).await;
    // Within the clocks' tolerance: its end doesn't end the stream.
    let token = issuer.sign(&json!({"iss": ISSUER, "sub": "otel", "team": "a", "exp": at(-50)}));
    let lines = format!("authorization: Bearer {token}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n");
    let (head, _) = exchange(&mut otel, &get("/ws", &lines)).await;
    assert_eq!(status(&head), 101, "{head}");
    mesh.expect_record(Verdict::Allow, Some(101)).await;
    let mut back = [0; 4];
    let mut echo = async |otel: &mut ambit_hbone::Tunnel| {
        soon(otel.write_all(b"ping")).await.expect("written");
        soon(otel.read_exact(&mut back)).await.is_ok()
    };
    assert!(echo(&mut otel).await);
    // Another policy, and other keys: what the stream's token said still counts.
    mesh.authenticated(
        &[team("a"), allow_all()],
        vec![tokens("tokens", json!([rule(&Issuer::new("ES256", "n"), json!({}))]))],
    );
    assert!(echo(&mut otel).await);
    mesh.authenticated(&[team("b")], vec![tokens("tokens", rules)]);
    let record = mesh.expect_record(Verdict::Deny, None).await;
    assert_eq!(record.path.as_deref(), Some("/ws"));
    assert!(matches!(soon(otel.read(&mut [0; 4])).await, Ok(0) | Err(_)));
}
