//! Routes on a running mesh, with Services as their parents: HTTPRoute, GRPCRoute, TCPRoute and TLSRoute.
#![forbid(unsafe_code)]

mod manifests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, thread,
    time::{Duration, Instant},
};

use ambit_tests::{Forward, Mesh, Place, each_user, finish, http1::Answer, http2::Client, tls::Certificate};
use serde_json::{Value, json};

use self::manifests::{APP, MESH, PORTS, routes};

const ALICE: &str = "shop/alice";

fn up<'a>(place: &'a Place) -> (Mesh<'a>, Certificate) {
    let program = place.program(env!("CARGO_BIN_EXE_app"), "app");
    let certificate = Certificate::make(place);
    let path = |name: &str| place.path(name).display().to_string();
    place.write("shop/mesh.yaml", MESH);
    for (name, space) in [("own", "shop"), ("a", "shop"), ("b", "shop"), ("c", "shop"), ("theirs", "team")] {
        let text =
            APP.replace("NAME", name).replace("SPACE", space).replace("PROGRAM", &program).replace("PORTS", PORTS);
        // Pods behind a waypoint are reached through it alone.
        let text = text.replace("LABEL", if name == "own" { "istio.io/use-waypoint: gate" } else { "" });
        let text = text.replace("CERT", &path("cert.der")).replace("KEY", &path("key.der"));
        place.write(&format!("shop/{name}.yaml"), &text);
    }
    place.write("shop/routes.yaml", &routes());
    let mesh = Mesh::up(place, &["-f", "shop", "--access-log", "access.jsonl"]);
    for pod in ["shop/own", "shop/a", "shop/b", "shop/c", "team/theirs"] {
        mesh.wait_for(pod);
    }
    all_ready(place, &mesh);
    (mesh, certificate)
}

fn all_ready(place: &Place, mesh: &Mesh<'_>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !status(place)["services"].as_array().is_some_and(|all| all.iter().all(|one| one["ready"] != 0)) {
        assert!(Instant::now() < deadline, "{}\n{}", status(place), mesh.printed());
        thread::sleep(Duration::from_millis(20));
    }
}

fn status(place: &Place) -> Value {
    let output = finish(place.ambit().args(["status", "--output", "json"]));
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn routes_of_every_kind_lead_where_they_say() {
    each_user(|place| {
        let (mesh, certificate) = up(place);
        let web = mesh.forward(ALICE, "shop/web:80");
        matches_and_their_order(&web);
        headers_in_both_directions(&web);
        redirects_and_rewrites(&web);
        mirrors(&mesh, &web);
        cross_origin_requests(&web);
        shares(place, &web);
        tries_and_timeouts(&web);
        ports_consumers_and_addresses(place, &mesh);
        calls(&mesh);
        connections(&mesh, &certificate);
        a_budget_of_retries(&mesh);
        edits(place, &mesh, &web);
    });
}

fn matches_and_their_order(web: &Forward) {
    let cases = [
        ("GET /pre", "b"),
        ("GET /pre/exact", "a"),
        ("GET /pre/exact?q", "a"),
        ("GET /pre/exact/more", "b"),
        ("GET /pre/longer/x", "c"),
        ("GET /pre/longer-not", "b"),
        ("GET /prefix", "404"),
        ("GET /12", "a"),
        ("GET /12/x", "a"),
        ("GET /12/xx", "404"),
        ("GET /head\nx-v: one", "a"),
        ("GET /head\nx-v: two", "b"),
        ("GET /head\nx-v: one\nx-w: 1", "c"),
        ("GET /head", "404"),
        ("GET /query?v=a%20b", "a"),
        ("GET /query?w=1&v=x", "b"),
        ("GET /query?v=x", "404"),
        ("POST /method\ncontent-length: 0\nx-v: one", "a"),
        ("PUT /method\ncontent-length: 0", "a"),
        ("GET /method\nx-v: one", "b"),
        ("GET /method", "404"),
        // The oldest route, then the first of its rules.
        ("GET /twice", "a"),
        // Whichever host is named, and as whatever it is dressed up.
        ("GET /pre/exact\nhost: b.shop", "a"),
        ("GET /x/../pre/longer", "c"),
    ];
    for (request, wanted) in cases {
        let answer = web.ask(request);
        assert_eq!(answer.who(), wanted, "{request}: {answer:?}");
    }
}

/// The headers of this name that the application saw.
fn saw(answer: &Answer, name: &str) -> Vec<String> {
    let seen = answer.seen();
    let headers = seen["seen"]["headers"].as_array().expect("headers");
    let values = headers.iter().filter(|header| header[0] == name).map(|header| header[1].as_str().expect("text"));
    values.map(str::to_owned).collect()
}

fn headers_in_both_directions(web: &Forward) {
    let answer = web.ask("GET /filter/headers\nx-set: mine\nx-add: mine\nx-gone: 1\nx-kept: 1");
    assert_eq!(answer.status, 200, "{answer:?}");
    for (name, wanted) in [
        ("x-set", &["rule"][..]),
        ("x-add", &["mine", "rule"]),
        ("x-gone", &[]),
        ("x-kept", &["1"]),
        ("x-level", &["backend"]),
    ] {
        assert_eq!(saw(&answer, name), wanted, "{name}");
    }
    assert_eq!((answer.headers("x-app").len(), answer.headers("x-new").len()), (0, 2), "{answer:?}");
}

fn redirects_and_rewrites(web: &Forward) {
    let answer = web.ask("GET /filter/redirect/x?q=1");
    assert_eq!((answer.status, answer.header("location")), (301, Some("https://new.example/to/x?q=1")), "{answer:?}");
    let answer = web.ask("GET /filter/rewrite/x?q=1");
    assert_eq!((answer.who(), &answer.seen()["seen"]["target"]), ("a".to_owned(), &"/inner/x?q=1".into()));
    assert_eq!(saw(&answer, "host"), ["new.example"]);
}

/// The client gets its own backend's answer; every mirror gets the whole request.
fn mirrors(mesh: &Mesh<'_>, web: &Forward) {
    let answer = web.ask_with("POST /filter/mirror?q=1", "hello");
    assert_eq!((answer.who(), &answer.seen()["seen"]["body"]), ("a".to_owned(), &"hello".into()));
    for name in ["b", "c"] {
        let copies = mesh.forward(ALICE, &format!("shop/{name}:80"));
        let deadline = Instant::now() + Duration::from_secs(10);
        let copy = loop {
            let seen: Value = serde_json::from_str(&copies.ask("GET /seen").body).expect("JSON");
            let copy =
                seen.as_array().and_then(|all| all.iter().find(|one| one["target"] == "/filter/mirror?q=1")).cloned();
            if let Some(copy) = copy {
                break copy;
            }
            assert!(Instant::now() < deadline, "{name} gets no copy: {seen}");
            thread::sleep(Duration::from_millis(10));
        };
        assert_eq!((&copy["method"], &copy["body"]), (&"POST".into(), &"hello".into()));
    }
    let seen = mesh.forward(ALICE, "shop/own:80").ask("GET /seen").body;
    assert!(!seen.contains("/filter/mirror"), "no copy at 0 %: {seen}");
}

fn cross_origin_requests(web: &Forward) {
    let preflight = |origin: &str| {
        let asked = "access-control-request-method: PUT\naccess-control-request-headers: x-a";
        web.ask(&format!("OPTIONS /filter/cors\norigin: {origin}\n{asked}"))
    };
    let answer = preflight("https://app.example");
    let say = |answer: &Answer, name: &str| answer.header(&format!("access-control-{name}")).map(str::to_owned);
    assert_eq!((answer.status, answer.header("x-app")), (204, None), "{answer:?}");
    for (name, wanted) in [
        ("allow-origin", "https://app.example"),
        ("allow-methods", "GET, PUT"),
        ("allow-headers", "x-a"),
        ("allow-credentials", "true"),
        ("max-age", "60"),
    ] {
        assert_eq!(say(&answer, name).as_deref(), Some(wanted), "{name}");
    }
    assert_eq!(say(&preflight("https://evil.test"), "allow-origin"), None);
    for (origin, wanted) in [("https://app.example", Some("https://app.example")), ("https://evil.test", None)] {
        let answer = web.ask(&format!("GET /filter/cors\norigin: {origin}"));
        assert_eq!((answer.who().as_str(), say(&answer, "allow-origin").as_deref()), ("a", wanted), "{answer:?}");
    }
}

fn shares(place: &Place, web: &Forward) {
    let mut counts = BTreeMap::<String, u32>::new();
    for _ in 0..120 {
        *counts.entry(web.ask("GET /share").who()).or_default() += 1;
    }
    // 90 and 30 are to be expected; five standard deviations are 24.
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["a", "b"], "{counts:?}");
    assert!((66..=114).contains(&counts["a"]), "{counts:?}");
    assert_eq!(web.ask("GET /lost").who(), "500", "no backend");
    let deadline = Instant::now() + Duration::from_secs(10);
    let why = "HTTPRoute `shop/shares` rule 1";
    while !fs::read_to_string(place.path("access.jsonl")).expect("the access log").contains(why) {
        assert!(Instant::now() < deadline, "the record doesn't say why");
        thread::sleep(Duration::from_millis(10));
    }
}

fn tries_and_timeouts(web: &Forward) {
    let cases = [
        ("/try/again", "503 503 200", 200),
        ("/try/again", "503 503 503 200", 503),
        ("/try/again", "500 200", 500),
        ("/try/again", "break 200", 200),
        ("/try/once", "503 200", 503),
        ("/try/request", "slow", 504),
        ("/try/request", "200", 200),
        ("/try/backend", "slow 200", 200),
        ("/try/backend", "slow slow", 504),
    ];
    for (path, script, status) in cases {
        let started = Instant::now();
        let answer = web.ask_with(&format!("POST {path}\nx-script: {script}"), "hello");
        assert_eq!(answer.status, status, "{path} {script}: {answer:?}");
        assert!(status != 200 || answer.seen()["seen"]["body"] == "hello", "each try has the body: {answer:?}");
        let waited = script.matches("slow").count() * 200;
        assert!(started.elapsed() >= Duration::from_millis(waited as u64), "{path} {script}: {:?}", started.elapsed());
    }
}

/// Three retries in an hour: two for the first request, one for the second, none for the third.
fn a_budget_of_retries(mesh: &Mesh<'_>) {
    let spent = mesh.forward(ALICE, "shop/spent:80");
    let tried = || spent.ask("GET /seen").body.matches("\"/spend\"").count();
    for (status, tries) in [(200, 3), (503, 2), (503, 1)] {
        let before = tried();
        assert_eq!(spent.ask("GET /spend\nx-script: 503 503 200").status, status);
        assert_eq!(tried() - before, tries);
    }
}

/// Real pods of two namespaces: each is led by its own namespace's routes, by name and by address alike.
fn ports_consumers_and_addresses(place: &Place, mesh: &Mesh<'_>) {
    let status = status(place);
    let services = status["services"].as_array().expect("services");
    let vip = services.iter().find(|service| service["name"] == "web").and_then(|service| service["vip"].as_str());
    let vip = vip.expect("an address");
    let (alice, carol) = (["-n", "shop", "--sa", "alice"], ["-n", "team", "--sa", "carol"]);
    let cases = [
        (&alice, "web:80".to_owned(), "a"),
        (&alice, format!("{vip}:80"), "a"),
        (&carol, "web.shop:80".to_owned(), "theirs"),
        (&carol, format!("{vip}:80"), "theirs"),
        (&alice, "web:81".to_owned(), "b"),
        (&carol, "web.shop:81".to_owned(), "b"),
        (&alice, "web:82".to_owned(), "own"),
    ];
    for (who, address, wanted) in cases {
        let answer = &mesh.ask_all(who, &address, &[json!({"method": "GET", "path": "/pre/exact"})])[0];
        let seen: Value = serde_json::from_str(answer["body"].as_str().expect("a body")).expect("JSON");
        assert_eq!((&answer["status"], &seen["app"]), (&200.into(), &wanted.into()), "{who:?} {address}: {answer}");
    }
}

fn calls(mesh: &Mesh<'_>) {
    let forward = mesh.forward(ALICE, "shop/calls:80");
    let mut client = Client::connect(forward.address);
    for (path, headers, wanted, status) in [
        ("/grpc.Echo/Unary", &[][..], Some("a"), "0"),
        ("/grpc.Echo/Other", &[], Some("b"), "0"),
        ("/grpc.Echo/Fail", &[], Some("b"), "5"),
        ("/grpc.Echo/Unary", &[("x-v", "one")], Some("c"), "0"),
        ("/grpc.Else/Unary", &[], None, "12"),
    ] {
        let answer = client.call(path, headers, b"hello");
        assert_eq!((answer.text("x-app"), answer.text("grpc-status")), (wanted, Some(status)), "{path} {answer:?}");
        assert_eq!(answer.text("x-new").is_some(), wanted == Some("c"));
    }
}

fn connections(mesh: &Mesh<'_>, certificate: &Certificate) {
    let raw = mesh.forward(ALICE, "shop/raw:7000");
    let names: BTreeSet<_> = (0..40).map(|_| raw.ask("GET /").who()).collect();
    assert_eq!(names, ["a".to_owned(), "b".to_owned()].into());
    let secret = mesh.forward(ALICE, "shop/raw:443");
    for (name, wanted) in [("one.example", Some("a")), ("two.example", Some("b")), ("other.test", None)] {
        let greeted = certificate.greet(secret.connect(), name).ok().map(|(greeting, _)| greeting);
        let wanted = wanted.map(|app| format!("{app} as {name}\n"));
        assert_eq!(greeted.filter(|greeting| !greeting.is_empty()), wanted, "{name}");
    }
}

/// Routes change, break and go while a connection is open, and none of its requests fails.
fn edits(place: &Place, mesh: &Mesh<'_>, web: &Forward) {
    let all = routes();
    let edit = |from: &str, to: &str| {
        let text = all.replacen(from, to, 1);
        assert_ne!(text, all);
        place.write("shop/routes.yaml", &text);
    };
    let becomes = |request: &str, wanted: &str| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while web.ask(request).who() != wanted {
            assert!(Instant::now() < deadline, "{request}: {:?} and not {wanted}", web.ask(request));
            thread::sleep(Duration::from_millis(5));
        }
    };
    thread::scope(|scope| {
        let (done, stop) = std::sync::mpsc::channel::<()>();
        let asking = scope.spawn(move || {
            let mut client = Client::connect(web.address);
            let mut names = BTreeSet::new();
            while stop.try_recv().is_err() {
                let answer = client.ask("GET", "/pre/exact", &[], b"");
                assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
                names.insert(answer.text("x-app").expect("a name").to_owned());
            }
            names
        });
        edit("/pre/exact}}], backendRefs: [{name: a,", "/pre/exact}}], backendRefs: [{name: c,");
        becomes("GET /pre/exact", "c");
        edit("value: /pre/exact}", "value: /elsewhere}");
        becomes("GET /pre/exact", "b");
        becomes("GET /elsewhere", "a");
        // What can't be read changes nothing.
        let mark = mesh.mark();
        edit("type: Exact, value: /pre/exact", "type: Guess, value: /pre/exact");
        mesh.wait_for_after("routes.yaml:", mark);
        assert_eq!((web.ask("GET /elsewhere").who().as_str(), web.ask("GET /pre/exact").who().as_str()), ("a", "b"));
        place.write("shop/routes.yaml", &all);
        becomes("GET /pre/exact", "a");
        done.send(()).expect("it still asks");
        let names = asking.join().expect("no request failed");
        assert_eq!(names, ["a", "b", "c"].map(str::to_owned).into());
    });
    // Without any route, the Service's own pods.
    place.write("shop/routes.yaml", "# none\n");
    becomes("GET /pre/exact", "own");
}
