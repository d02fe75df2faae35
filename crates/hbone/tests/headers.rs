//! The headers of a CONNECT: what is written, what is understood, and what is refused (`spec/ztunnel.md` 2.5, 2.6).

use ambit_hbone::{Baggage, ConnectHeaders, Forwarded, TraceParent, WorkloadKind, fuzzing};
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::{collection::vec, prelude::*};

fn map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().expect("a name");
        map.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    map
}

fn full() -> ConnectHeaders {
    ConnectHeaders {
        baggage: Some(Baggage {
            cluster: "east".into(),
            namespace: "shop".into(),
            workload: Some((WorkloadKind::Deployment, "cart".into())),
            service: "cart".into(),
            revision: "v2".into(),
            region: "r1".into(),
            zone: "z1".into(),
        }),
        forwarded: Some(Forwarded {
            client: Some("10.0.0.1:4711".parse().expect("an address")),
            host: Some("cart.shop.svc.cluster.local".into()),
        }),
        trace: Some(TraceParent {
            trace_id: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            span_id: 0xb7ad_6b71_6920_3331,
            flags: 0,
        }),
        network: Some("west".into()),
    }
}

#[test]
fn all_headers_are_written_as_the_original_writes_them() {
    let written = full().to_map().expect("sound");
    assert_eq!(
        written["baggage"],
        "k8s.cluster.name=east,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v2,\
         cloud.region=r1,cloud.availability_zone=z1"
    );
    assert_eq!(written["forwarded"], "for=\"10.0.0.1:4711\";host=cart.shop.svc.cluster.local");
    assert_eq!(written["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
    assert_eq!(written["x-forwarded-network"], "west");
    assert_eq!(ConnectHeaders::parse(&written), Ok(full()));

    let client = Some("[::1]:80".parse().expect("an address"));
    let sparse = ConnectHeaders {
        baggage: Some(Baggage { namespace: "a".into(), ..Baggage::default() }),
        forwarded: Some(Forwarded { client, host: None }),
        ..ConnectHeaders::default()
    };
    let written = sparse.to_map().expect("sound");
    assert_eq!(written["baggage"], "k8s.namespace.name=a", "only what is not empty");
    assert_eq!(written["forwarded"], "for=\"[::1]:80\"");
    assert_eq!(written.len(), 2);
    assert_eq!(ConnectHeaders::default().to_map().expect("sound").len(), 0);
    let nothing = ConnectHeaders { baggage: Some(Baggage::default()), ..ConnectHeaders::default() };
    assert_eq!(nothing.to_map().expect("sound").len(), 0);
}

#[test]
fn labels_that_cannot_be_sent_are_left_out() {
    let odd = Baggage {
        cluster: "a,b".into(),
        region: "ü".into(),
        zone: "x;y".into(),
        service: "s".into(),
        ..Baggage::default()
    };
    assert_eq!(odd.to_string(), "service.name=s");
}

#[test]
fn what_others_write_is_understood() {
    let cases = [
        ("baggage", " k8s.namespace.name = a ;prop=1 , other=x,, service.name=s"),
        ("forwarded", "For=\"10.0.0.1:80\" ; HOST=\"s.a.svc\"; proto=https, for=192.0.2.1"),
        ("traceparent", "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes-later"),
    ];
    let headers = ConnectHeaders::parse(&map(&cases)).expect("sound");
    let baggage = headers.baggage.expect("some");
    assert_eq!((&baggage.namespace[..], &baggage.service[..]), ("a", "s"));
    let forwarded = headers.forwarded.expect("some");
    assert_eq!(forwarded.client, Some("10.0.0.1:80".parse().expect("an address")));
    assert_eq!(forwarded.host.as_deref(), Some("s.a.svc"));
    assert_eq!(headers.trace.expect("some").flags, 1);
    for hidden in ["for=unknown", "for=\"_hidden\"", "for=10.0.0.1", "by=x"] {
        let headers = ConnectHeaders::parse(&map(&[("forwarded", hidden)])).expect("sound");
        assert_eq!(headers.forwarded, Some(Forwarded::default()), "{hidden}");
    }
    for (kind, name) in [("cronjob", WorkloadKind::CronJob), ("pod", WorkloadKind::Pod), ("job", WorkloadKind::Job)] {
        let headers = map(&[("baggage", &format!("k8s.{kind}.name=w"))]);
        assert_eq!(Baggage::of(&headers).expect("sound").expect("some").workload, Some((name, "w".into())));
    }
}

#[test]
fn malformed_headers_are_refused_with_their_name_and_fault() {
    let long = "x".repeat(5000);
    let many = "a=b,".repeat(65);
    let proxies = "for=a,".repeat(20);
    let trace = |text: &str| text.replace('*', "0af7651916cd43dd8448eb211c80319c").replace('+', "b7ad6b7169203331");
    let cases = [
        ("baggage", "no equals sign".to_owned(), "has no `=`"),
        ("baggage", "k8s.pod.name=\u{fc}".to_owned(), "not visible ASCII"),
        ("baggage", format!("a={long}"), "longer than 4096"),
        ("baggage", many, "more than 64 members"),
        ("forwarded", "for".to_owned(), "has no `=`"),
        ("forwarded", "for=\"10.0.0.1:80".to_owned(), "quotes"),
        ("forwarded", "for=\"10.0.0.1:80\"x".to_owned(), "quotes"),
        ("forwarded", proxies, "more than 16 elements"),
        ("forwarded", long.clone(), "longer than 4096"),
        ("traceparent", String::new(), "expected"),
        ("traceparent", trace("00-*-+"), "expected"),
        ("traceparent", trace("00-*-+-00-more"), "expected"),
        ("traceparent", trace("ff-*-+-00"), "expected"),
        ("traceparent", trace("00-*-0000000000000000-00"), "expected"),
        ("traceparent", trace("00-00000000000000000000000000000000-+-00"), "expected"),
        ("traceparent", trace("00-*-+-0G"), "expected"),
        ("traceparent", trace("00-*-+-00").to_uppercase(), "expected"),
        ("traceparent", "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".to_owned(), "expected"),
        ("x-forwarded-network", String::new(), "empty"),
    ];
    for (name, value, fault) in cases {
        let error = ConnectHeaders::parse(&map(&[(name, &value)])).expect_err(&value);
        assert!(error.header == name && error.to_string().contains(fault), "{name}: {value}: {error}");
    }
    for name in ["forwarded", "traceparent", "x-forwarded-network"] {
        let error = ConnectHeaders::parse(&map(&[(name, "for=a"), (name, "for=b")])).expect_err(name);
        assert!(error.reason.contains("more than once"), "{error}");
    }
    for headers in [
        ConnectHeaders { network: Some("a\nb".into()), ..ConnectHeaders::default() },
        // Found by fuzzing: the receiver would have refused these.
        ConnectHeaders { network: Some(String::new()), ..ConnectHeaders::default() },
        ConnectHeaders { network: Some(" a".into()), ..ConnectHeaders::default() },
        ConnectHeaders { network: Some(long), ..ConnectHeaders::default() },
        ConnectHeaders {
            forwarded: Some(Forwarded { client: None, host: Some("a;for=b".into()) }),
            ..ConnectHeaders::default()
        },
    ] {
        headers.to_map().expect_err("can't be sent");
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9.-]{0,40}"
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_understood(
        fields in vec(name(), 8), kind in 0..4_usize, port: u16, v6: bool, trace_id in 1..u128::MAX, span_id in 1..u64::MAX, flags: u8,
    ) {
        let kinds = [WorkloadKind::Deployment, WorkloadKind::CronJob, WorkloadKind::Pod, WorkloadKind::Job];
        let ip = if v6 { "2001:db8::1" } else { "10.1.2.3" };
        let headers = ConnectHeaders {
            baggage: Some(Baggage {
                cluster: fields[0].clone(),
                namespace: fields[1].clone(),
                workload: Some((kinds[kind], fields[2].clone())),
                service: fields[3].clone(),
                revision: fields[4].clone(),
                region: fields[5].clone(),
                zone: fields[6].clone(),
            }),
            forwarded: Some(Forwarded {
                client: Some(std::net::SocketAddr::new(ip.parse().expect("an address"), port)),
                host: Some(fields[7].clone()),
            }),
            trace: Some(TraceParent { trace_id, span_id, flags }),
            network: Some(fields[0].clone()),
        };
        prop_assert_eq!(ConnectHeaders::parse(&headers.to_map().expect("sound")), Ok(headers));
    }

    #[test]
    fn nothing_panics_and_what_is_understood_stays(lines in vec(
        (0..4_u8, prop_oneof![
            any::<Vec<u8>>().prop_map(|bytes| bytes.into_iter().filter(|byte| *byte != b'\n').collect::<Vec<u8>>()),
            "(for|host|FOR)=\"?[0-9.:a-z_\\[\\]]{0,20}\"?(;|,|)(host=[a-z.]{0,9})?".prop_map(String::into_bytes),
            "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-x)?".prop_map(String::into_bytes),
            "(k8s\\.(pod|job|x)\\.name|cloud\\.region|service\\.name|y) ?= ?[a-z;= ]{0,9},?".prop_map(String::into_bytes),
        ]),
        0..5,
    )) {
        let mut input = Vec::new();
        for (name, value) in lines {
            input.push(name);
            input.extend_from_slice(&value);
            input.push(b'\n');
        }
        fuzzing::connect_headers(&input);
    }
}

/// A frame as bytes: mostly of the kinds there are, on the streams there may be, of about the right size.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let request = vec![0x42, 0x07, b'C', b'O', b'N', b'N', b'E', b'C', b'T', 0x41, 0x03, b'a', b':', b'1'];
    let answer = vec![0x88];
    let payload = prop_oneof![
        3 => Just(request),
        2 => Just(answer),
        3 => vec(any::<u8>(), 0..40),
        2 => vec(any::<u8>(), 8),
        2 => (0..20_000_u32).prop_map(|number| number.to_be_bytes().to_vec()),
        1 => Just(vec![0; 16_384]),
    ];
    let stream = prop_oneof![4 => 0..12_u32, 1 => any::<u32>()];
    (0..11_u8, prop_oneof![Just(4_u8), Just(5), Just(0), Just(1), any::<u8>()], stream, payload).prop_map(
        |(kind, flags, stream, payload)| {
            let [_, a, b, c] = u32::try_from(payload.len()).expect("short").to_be_bytes();
            let mut bytes = vec![a, b, c, kind, flags];
            bytes.extend_from_slice(&stream.to_be_bytes());
            bytes.extend_from_slice(&payload);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_frames_break_a_connections_invariants(first: u8, frames in vec(frame(), 0..40)) {
        let mut input = vec![first];
        input.extend(frames.into_iter().flatten());
        fuzzing::connection(&input);
    }

    #[test]
    fn the_pieces_in_which_frames_come_say_nothing(first: u8, cuts in vec(any::<u8>(), 8), frames in vec(frame(), 0..20)) {
        let mut input = vec![first];
        input.extend(cuts);
        input.extend(frames.into_iter().flatten());
        fuzzing::cut_connection(&input);
    }

    #[test]
    fn two_ends_lose_nothing_whatever_their_tasks_and_the_network_do(script in vec(any::<u8>(), 0..256)) {
        fuzzing::connection_ends(&script);
    }
}
