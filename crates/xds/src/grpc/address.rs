//! Addresses of servers, as operators write them.

use std::{fmt, net::IpAddr, str::FromStr};

/// Port of a server that speaks TLS, if its address names none.
const TLS_PORT: u16 = 15012;
/// Port of a server that speaks plain text, if its address names none.
const PLAINTEXT_PORT: u16 = 15010;

/// `[http[s]://]host[:port]`; without a scheme it is `https`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
}

/// Text that isn't an [`ServerAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the address of a server: {reason}; write it like `https://istiod.istio-system.svc:15012`")]
pub struct ServerAddressError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

// === impl ServerAddress ===

impl ServerAddress {
    /// True if TLS is spoken.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Scheme and authority, for requests.
    pub(crate) fn origin(&self) -> Option<http::Uri> {
        self.to_string().parse().ok()
    }

    /// True for addresses that no other machine sees. A name doesn't count: who resolves it may say anything.
    pub(super) fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }
}

impl FromStr for ServerAddress {
    type Err = ServerAddressError;

    fn from_str(text: &str) -> Result<Self, ServerAddressError> {
        let wrong = |reason| ServerAddressError { text: text.chars().take(256).collect(), reason };
        let (tls, rest) = match text.split_once("://") {
            None => (true, text),
            Some(("https", rest)) => (true, rest),
            Some(("http", rest)) => (false, rest),
            Some(_) => return Err(wrong("its scheme is neither `https` nor `http`")),
        };
        let authority: http::uri::Authority =
            rest.strip_suffix('/').unwrap_or(rest).parse().map_err(|_| wrong("it isn't `host:port`"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it names a user"));
        }
        let port = authority.as_str().strip_prefix(authority.host()).and_then(|rest| {
            // Not `Authority::port`, which has none where what is written isn't one.
            if rest.is_empty() { Some(None) } else { rest.strip_prefix(':').map(Some) }
        });
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return Err(wrong("it has no host"));
        }
        let port = match port {
            Some(None) => {
                if tls {
                    TLS_PORT
                } else {
                    PLAINTEXT_PORT
                }
            }
            Some(Some(written)) => match written.parse() {
                Ok(0) | Err(_) => return Err(wrong("its port isn't one")),
                Ok(port) => port,
            },
            None => return Err(wrong("it isn't `host:port`")),
        };
        Ok(Self { tls, host: host.to_owned(), port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_operators_write_them() {
        for (text, shown) in [
            ("https://istiod.istio-system.svc:15012", "https://istiod.istio-system.svc:15012"),
            ("istiod.istio-system.svc:15012", "https://istiod.istio-system.svc:15012"),
            ("istiod", "https://istiod:15012"),
            ("http://istiod", "http://istiod:15010"),
            ("http://127.0.0.1:7/", "http://127.0.0.1:7"),
            ("https://[::1]:15012", "https://[::1]:15012"),
        ] {
            assert_eq!(
                text.parse::<ServerAddress>().map(|address| address.to_string()).as_deref(),
                Ok(shown),
                "{text}"
            );
        }
        for text in
            ["", "ftp://a:1", "https://", "https://a:0", "https://a:70000", "https://u@a:1", "a:b", "https://a/b"]
        {
            assert!(text.parse::<ServerAddress>().is_err(), "{text}");
        }
    }
}
