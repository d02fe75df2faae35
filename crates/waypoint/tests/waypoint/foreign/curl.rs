use ambit_xds::workload::AppProtocol;

use super::{gate, mesh, run, text};
use crate::{
    backend::Raw,
    mesh::{Shape, header},
    tools,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_gets_its_answers_in_every_version_and_framing() {
    let Some(curl) = tools::program(&["curl"]) else { return };
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.protocol = AppProtocol::Http11;
    let mesh = mesh(shape).await;
    let address = gate(&mesh).await;
    let url = format!("http://{address}/");
    let body = vec![b'x'; 200_000];
    let upload = ["--data-binary", "@-"];
    let chunked = [&upload[..], &["-H", "transfer-encoding: chunked"]].concat();
    let expecting = [&upload[..], &["-H", "expect: 100-continue", "--expect100-timeout", "30"]].concat();
    // Arguments, how the answer begins, and what the application has read then.
    let cases: [(&[&str], &str, &str); 9] = [
        (&["--http1.0"], "HTTP/1.0 200", "GET / HTTP/1.1\r\n"),
        (&["--http1.1"], "HTTP/1.1 200", "GET / HTTP/1.1\r\n"),
        (&["--http2-prior-knowledge"], "HTTP/2 200", "GET / HTTP/1.1\r\n"),
        // An offer to switch that isn't taken up.
        (&["--http2"], "HTTP/1.1 200", "GET / HTTP/1.1\r\n"),
        (&upload, "HTTP/1.1 200", "POST / HTTP/1.1\r\n"),
        (&chunked, "HTTP/1.1 200", "POST / HTTP/1.1\r\n"),
        (&expecting, "HTTP/1.1 100", "POST / HTTP/1.1\r\n"),
        (&["--http2-prior-knowledge", "--data-binary", "@-"], "HTTP/2 200", "POST / HTTP/1.1\r\n"),
        (&["-X", "PATCH", "-H", "x-own: 1"], "HTTP/1.1 200", "PATCH / HTTP/1.1\r\n"),
    ];
    for (arguments, begins, saw) in cases {
        let all = [&["-sS", "-i", "--max-time", "30"], arguments, &[url.as_str()]].concat();
        let output = run(&curl, &all, &body).await;
        let (answer, said) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}{answer}");
        assert!(answer.starts_with(begins) && answer.ends_with("\r\n\r\nok"), "{arguments:?}: {answer}");
        assert!(answer.contains(" 200"), "{arguments:?}: {answer}");
        let seen = app.seen().pop().expect("it arrived");
        assert!(seen.starts_with(saw), "{arguments:?}: {seen:.200}");
        assert_eq!(header(&seen, "host"), Some(address.to_string().as_str()), "{arguments:?}");
        let sent = if arguments.contains(&"@-") { body.len() } else { 0 };
        let received = seen.split_once("\r\n\r\n").expect("a body").1.matches('x').count();
        assert_eq!(received, sent, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_is_denied_and_keeps_its_connection() {
    let Some(curl) = tools::program(&["curl"]) else { return };
    let app = Raw::start().await;
    let mesh = mesh(Shape::of(app.address)).await;
    let address = gate(&mesh).await;
    let [first, denied, last] = ["first", "denied", "last"].map(|path| format!("http://{address}/{path}"));
    let format = "<%{http_code} %{num_connects}>";
    let arguments = ["-sS", "--max-time", "30", "-w", format, &first, &denied, &last];
    let output = run(&curl, &arguments, b"").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "ok<200 1>RBAC: access denied<403 0>ok<200 0>");
    assert_eq!(app.seen().len(), 2);
}
