//! Routes never lead around the policies of others.

use ambit_policy::Verdict;
use ambit_xds::ADDRESS_TYPE;
use serde_json::json;

use super::{App, Backend, bind, bound, http_route, kind_route, mesh, send, workload};
use crate::mesh::{NAMESPACE, account, allow_all, policy};

fn only_path(path: &str) -> serde_json::Value {
    policy(json!({"action": "ALLOW", "rules": [{"to": [{"operation": {"paths": [path]}}]}]}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumers_route_is_for_clients_of_its_namespace_alone() {
    let (own, a, b) = (App::start("own").await, App::start("a").await, App::start("b").await);
    let mesh = mesh(&own, &[Backend::of("a", 1, &a), Backend::of("b", 2, &b)]).await;
    let to = |name: &str| format!("rules: [{{backendRefs: [{{name: {name}, namespace: {NAMESPACE}, port: 80}}]}}]");
    let other = kind_route("HTTPRoute", "v1", "elsewhere", "mine", &to("b"));
    bind(&mesh, &other, &[allow_all()], Vec::new());
    assert_eq!(
        send(&mesh, "any", "GET /", "").await.2,
        "own saw GET / at mlflow:5000",
        "not a client of its namespace"
    );
    // All clients of this mesh are of its own namespace, so the tables are what is tried from elsewhere.
    let producer = http_route("theirs", &to("a").replace("rules: ", ""));
    bind(&mesh, &format!("{other}{producer}"), &[allow_all()], Vec::new());
    assert_eq!(send(&mesh, "any", "GET /", "").await.2, "a saw GET / at mlflow:5000");
    let view = mesh.store.load();
    let bundle = view.waypoint(NAMESPACE, "waypoint").expect("bundle");
    let routes = bundle.routes.values().next().expect("routes");
    let hostname = |client: &str| {
        let table = routes.http(client, 5000).expect("routes");
        let headers = http::HeaderMap::new();
        let request = ambit_mesh::view::routes::RequestLine {
            method: &http::Method::GET,
            target: "/",
            authority: "h",
            headers: &headers,
        };
        let rule = table.find(&request).expect("a match").rule;
        rule.backends[0].to.as_ref().expect("a service").key.hostname.to_string()
    };
    assert_eq!(hostname("elsewhere"), "b.kagenti-system.svc.cluster.local", "the consumer's own come first");
    assert_eq!(hostname("third"), "a.kagenti-system.svc.cluster.local");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_of_another_namespace_behind_this_waypoint_keeps_its_policies() {
    let (own, a) = (App::start("own").await, App::start("a").await);
    let backend = Backend { namespace: "other", ..Backend::of("a", 1, &a) };
    let mut mesh = mesh(&own, std::slice::from_ref(&backend)).await;
    let rules = "[{filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /in}}}], \
                  backendRefs: [{name: a, namespace: other, port: 80}]}]";
    // Judged as it was addressed by its own service, and as it will be sent by the backend.
    for (theirs, wanted) in [("/in/x", 200), ("/x", 403)] {
        let others = vec![bound("other", &backend.hostname(), &[only_path(theirs)])];
        bind(&mesh, &http_route("r", rules), &[only_path("/x")], others);
        let answer = send(&mesh, "any", "GET /x", "").await;
        assert_eq!(answer.0, wanted, "{theirs}: {answer:?}");
        let verdict = if wanted == 200 { Verdict::Allow } else { Verdict::Deny };
        mesh.expect_record(verdict, Some(wanted)).await;
    }
    assert_eq!(a.seen().len(), 1);
    // In one namespace, whoever writes the route also writes the policies.
    let mine = Backend::of("m", 4, &a);
    mesh.apply(ADDRESS_TYPE, mine.resources(), &[]);
    let others = vec![bound(NAMESPACE, &mine.hostname(), &[only_path("/never")])];
    bind(&mesh, &http_route("r", "[{backendRefs: [{name: m, port: 80}]}]"), &[allow_all()], others);
    assert_eq!(send(&mesh, "any", "GET /x", "").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_behind_another_waypoint_is_reached_through_it() {
    let (own, a) = (App::start("own").await, App::start("a").await);
    let waypoint = "w2.other.svc.cluster.local";
    // The stand-in for node proxies is the other waypoint, too: it leads to the address that it is asked for.
    let (vip, port) = ([127, 0, 0, 2], a.address.port());
    let backend =
        Backend { namespace: "other", waypoint: Some(("other", waypoint)), vip, port, ..Backend::of("a", 1, &a) };
    let rules = format!("[{{backendRefs: [{{name: a, namespace: other, port: {port}}}]}}]");
    let mesh = mesh(&own, std::slice::from_ref(&backend)).await;
    bind(&mesh, &http_route("r", &rules), &[allow_all()], Vec::new());
    let answer = send(&mesh, "any", "GET /x", "").await;
    assert_eq!((answer.0, a.seen().len()), (503, 0), "its waypoint isn't there: {answer:?}");

    let at = std::net::SocketAddr::new("127.0.0.2".parse().expect("address"), mesh.hbone_port);
    mesh.apply(ADDRESS_TYPE, vec![workload("w2", &format!("other/{waypoint}"), 15008, at, "mlflow")], &[]);
    let answer = send(&mesh, "any", "GET /x", "").await;
    assert_eq!(answer.2, "a saw GET /x at mlflow:5000", "{answer:?}");
    let arrivals = mesh.arrivals.lock().expect("unpoisoned").clone();
    let last = arrivals.last().expect("an arrival");
    assert_eq!((last.authority.clone(), last.peer.clone()), (a.address.to_string(), account("waypoint")));
}
