use super::*;

#[test]
fn settings_are_told_apart() {
    assert_eq!(Roots::from_setting("SYSTEM"), Roots::System);
    assert_eq!(Roots::from_setting("./no/such.pem"), Roots::File("./no/such.pem".into()));
    let pem = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
    assert_eq!(Roots::from_setting(pem), Roots::Inline(pem.into()));
    assert_eq!(Token::from_setting("./no/such"), Token::File("./no/such".into()));
    assert_eq!(Token::from_setting("eyJh.b.c"), Token::Literal("eyJh.b.c".into()));
    assert_eq!(Token::from_setting(""), Token::None);
    assert_eq!(format!("{:?}", Token::from_setting("eyJh.b.c")), "Literal(..)");
}

#[test]
fn a_token_is_only_sent_where_no_one_can_read_it() {
    let sent = |address: &str, token: &str| {
        let address = address.parse().expect("an address");
        let endpoint = Endpoint { token: Token::Literal(token.into()), ..Endpoint::new(address, Roots::System) };
        endpoint.metadata().map(|metadata| metadata.get("authorization").map(|value| value.as_bytes().to_vec()))
    };
    assert_eq!(sent("https://istiod", "t\n"), Ok(Some(b"Bearer t".to_vec())));
    assert_eq!(sent("http://127.0.0.1", "t"), Ok(Some(b"Bearer t".to_vec())));
    assert!(matches!(sent("http://istiod", "t"), Err(ConnectError::TokenWithoutTls { .. })));
    assert!(matches!(sent("http://localhost", "t"), Err(ConnectError::TokenWithoutTls { .. })));
    assert!(matches!(sent("https://istiod", " "), Err(ConnectError::Token { .. })));
    assert!(matches!(sent("https://istiod", "a\u{7f}\u{0}"), Err(ConnectError::Token { .. })));
}

#[test]
fn headers_that_would_break_a_call_are_refused() {
    for (name, value) in [("te", "x"), ("grpc-timeout", "1S"), ("a b", "x"), ("a", "ä\n")] {
        let address = "istiod".parse().expect("an address");
        let headers = vec![(name.to_owned(), value.to_owned())];
        let endpoint = Endpoint { headers, ..Endpoint::new(address, Roots::System) };
        assert!(matches!(endpoint.metadata(), Err(ConnectError::Header { .. })), "{name}");
    }
}
