use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use ambit_xds::workload::AppProtocol;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{gate, mesh, run, text};
use crate::{
    mesh::{Shape, soon},
    tools,
};

/// gRPC's own server for Go, as an application.
struct Server {
    address: SocketAddr,
    said: mpsc::UnboundedReceiver<String>,
    process: Child,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_calls_of_another_language_work() {
    let Some(program) = tools::go("foreign-grpc").await else { return };
    for protocol in [AppProtocol::Grpc, AppProtocol::Http2, AppProtocol::Unknown] {
        let mut server = Server::start(&program).await;
        let mut shape = Shape::of(server.address);
        shape.protocol = protocol;
        let mesh = mesh(shape).await;
        let output = run(&program, &["call", &gate(&mesh).await.to_string()], b"").await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        let calls: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [unary, download, upload, both, fail, denied, wait, again] = calls.as_slice() else {
            panic!("{said:.2000}")
        };
        let received = |call: &Value| call["received"].as_array().map_or(0, Vec::len);

        assert_eq!((&unary["code"], &unary["received"][0]), (&0.into(), &"hello true".into()), "{unary}");
        assert_eq!((&unary["head"][0], &unary["tail"][0]), (&"mine".into(), &"last".into()), "{unary}");
        assert_eq!((&download["code"], received(download)), (&0.into(), 100));
        assert!(
            download["received"]
                .as_array()
                .expect("messages")
                .iter()
                .all(|message| { message.as_str().is_some_and(|message| message.matches('x').count() == 10_000) })
        );
        assert_eq!(download["tail"][0], "last");
        assert_eq!((&upload["code"], &upload["received"][0]), (&0.into(), &"1000000".into()), "{upload}");
        assert_eq!(both["received"], serde_json::json!(["one", "two", "three"]), "{both}");
        assert_eq!((&both["code"], &both["tail"][0]), (&0.into(), &"last".into()), "{both}");
        assert_eq!((&fail["code"], &fail["message"]), (&5.into(), &"no such thing: 100 %, ünd".into()), "{fail}");
        assert_eq!(fail["tail"][0], "last", "{fail}");
        // PERMISSION_DENIED, and below DEADLINE_EXCEEDED.
        assert_eq!((&denied["code"], &denied["message"]), (&7.into(), &"RBAC: access denied".into()), "{denied}");
        // The server has the same deadline, and ends the stream by it if its clock is the first.
        let servers = wait["code"] == 14 && wait["millis"].as_u64().is_some_and(|millis| millis >= 300);
        assert!(wait["code"] == 4 || servers, "{wait}");
        assert_eq!(soon(server.said.recv()).await.as_deref(), Some("gone"), "the server knows as well");
        assert_eq!((&again["code"], &again["received"][0]), (&0.into(), &"again true".into()), "{again}");
    }
}

// === impl Server ===

impl Server {
    async fn start(program: &Path) -> Self {
        let mut process = Command::new(program)
            .args(["serve", "127.0.0.2:0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let output = process.stdout.take().expect("piped");
        let (sender, mut said) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let port = soon(said.recv()).await.expect("it runs").parse::<u16>().expect("a port");
        Self { address: ([127, 0, 0, 2], port).into(), said, process }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
