//! Living streams, when policies come later that would have judged what is no longer in the request.

use ambit_policy::Verdict;
use ambit_xds::waypoint::HttpCheck;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    authn::{ISSUER, at, rule, tokens},
    authorizer,
    backend::Raw,
    custom::{govern, govern_believing},
    issuer::Issuer,
    mesh::{Mesh, NAMESPACE, Shape, allow_all, exchange, soon, status},
};

/// Wants a provider asked about what one of these rules matches.
fn asking(rules: Value) -> Value {
    let spec = json!({"action": "CUSTOM", "provider": {"name": "ext"}, "rules": rules});
    json!({"namespace": NAMESPACE, "name": "later", "spec": spec})
}

async fn echoes(stream: &mut ambit_hbone::Tunnel) -> bool {
    let mut back = [0; 4];
    if soon(stream.write_all(b"ping")).await.is_err() || soon(stream.flush()).await.is_err() {
        return false;
    }
    soon(stream.read_exact(&mut back)).await.is_ok() && back == *b"ping"
}

/// A policy comes that speaks of the token that was taken out of a WebSocket's request, and one that speaks of something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_policy_that_comes_later_judges_the_token_that_was_taken_out() {
    let issuer = Issuer::new("ES256", "k");
    let token = issuer.sign(&json!({"iss": ISSUER, "sub": "otel", "exp": at(3600)}));
    let header = json!([{"when": [{"key": "request.headers[authorization]", "values": ["Bearer *"]}]}]);
    let cookie = json!([{"when": [{"key": "request.headers[cookie]", "values": ["a=1; session=*"]}]}]);
    let forged = json!([{"when": [{"key": "request.headers[x-payload]", "values": ["forged"]}]}]);
    let made = json!([{"when": [{"key": "request.headers[x-payload]", "values": ["*"]}]}]);
    let usual = json!({});
    let in_cookie = json!({"fromCookies": ["session"]});
    let payload = json!({"outputPayloadToHeader": "x-payload"});
    let bearer = format!("authorization: Bearer {token}\r\n");
    let session = format!("cookie: a=1; session={token}\r\n");
    let forging = "x-payload: forged\r\n".to_owned();
    for (settings, lines, rules, ends) in [
        (&usual, &bearer, &header, true),
        (&usual, &String::new(), &header, false),
        (&in_cookie, &session, &cookie, true),
        (&payload, &forging, &forged, true),
        // What the waypoint put in wasn't sent.
        (&payload, &bearer, &made, false),
    ] {
        let app = Raw::start().await;
        let mut mesh = Mesh::start(Shape::of(app.address)).await;
        let believed = || vec![tokens("tokens", json!([rule(&issuer, settings.clone())]))];
        govern_believing(&mesh, &[allow_all()], believed(), &[]);
        let mut stream = mesh.tunnel("any").await;
        let upgrade = "connection: Upgrade\r\nupgrade: websocket\r\n";
        let request = format!("GET /ws HTTP/1.1\r\nhost: mlflow:5000\r\n{upgrade}{lines}\r\n");
        assert_eq!(status(&exchange(&mut stream, &request).await.0), 101, "{lines}");
        mesh.expect_record(Verdict::Allow, Some(101)).await;
        assert!(!app.seen()[0].contains(&token), "the application doesn't get it");
        assert!(echoes(&mut stream).await);

        // Nobody is there to be asked, which matters only where somebody would be.
        let provider = authorizer::over_http(1, HttpCheck::default());
        govern_believing(&mesh, &[asking(rules.clone()), allow_all()], believed(), &[provider]);
        if ends {
            let record = mesh.expect_record(Verdict::Deny, None).await;
            assert_eq!(record.policy.expect("policy").to_string(), "kagenti-system/later", "{lines}");
            assert!(!record.reason.contains(&token));
            assert!(matches!(soon(stream.read(&mut [0; 4])).await, Ok(0) | Err(_)));
        } else {
            // It would end soon after the change, not at once.
            for _ in 0..50 {
                assert!(echoes(&mut stream).await, "{lines}");
            }
        }
        govern(&mesh, &[allow_all()], &[]);
    }
}
