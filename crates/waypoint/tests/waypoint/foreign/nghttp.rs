use ambit_xds::workload::AppProtocol;

use super::{gate, mesh, run, text};
use crate::{
    backend::{self, Raw},
    mesh::Shape,
    tools,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_sends_bodies_and_trailers_over_http2() {
    let Some(nghttp) = tools::program(&["nghttp"]) else { return };
    let mesh = mesh(Shape::of(backend::http2().await)).await;
    let address = gate(&mesh).await;
    let url = format!("http://{address}/p");
    let data = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(data.path(), "~".repeat(300_000)).expect("written");
    let data = data.path().to_str().expect("a path in UTF-8");
    let arguments = ["-v", "-d", data, "-H", ":method: PUT", "--trailer", "x-sum: 42", &url];
    let output = run(&nghttp, &arguments, b"").await;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{}{said:.2000}", text(&output.stderr));
    for expected in [":status: 200", "x-saw: PUT ", "x-sum: 42", "x-end: 1"] {
        assert!(said.contains(expected), "no `{expected}` in {said:.3000}");
    }
    assert_eq!(said.matches('~').count(), 300_000, "the body came back");

    let denied = format!("http://{address}/denied");
    let said = text(&run(&nghttp, &["-v", &denied], b"").await.stdout);
    assert!(said.contains(":status: 403") && said.contains("RBAC: access denied"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_all_its_answers() {
    let Some(h2load) = tools::program(&["h2load"]) else { return };
    let app = Raw::start().await;
    let mut shape = Shape::of(app.address);
    shape.protocol = AppProtocol::Http11;
    let mesh = mesh(shape).await;
    let address = gate(&mesh).await;
    let url = format!("http://{address}/");
    for version in ["--no-tls-proto=h2c", "--h1"] {
        let output = run(&h2load, &["-n", "1000", "-c", "4", "-m", "10", version, &url], b"").await;
        let said = text(&output.stdout);
        let expected = "requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(output.status.success() && said.contains(expected), "{version}: {said}");
    }
    assert_eq!(app.seen().len(), 2_000);
}
