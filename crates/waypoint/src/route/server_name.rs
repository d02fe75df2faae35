//! The server's name that a TLS client asks for (RFC 6066, 3), read from its first message.

use std::{io, time::Duration};

use ambit_policy::Sni;
use rustls::server::Acceptor;
use tokio::io::AsyncRead;

use crate::{detect::ReadAhead, limits::MAX_DETECTION_BYTES};

/// Reads on until the name is known, in lower case; nothing if there is none, if it isn't TLS, or if it takes too long.
/// What was read stays in the stream.
pub(crate) async fn server_name<S>(ahead: &mut ReadAhead<S>, timeout: Duration) -> Option<String>
where
    S: AsyncRead + Unpin,
{
    match heard(ahead, timeout).await {
        Sni::Name(name) => Some(name.to_string()),
        Sni::Absent | Sni::Unknown => None,
    }
}

/// The same for policies, which tell a handshake without a name from one that didn't come, or not whole.
pub(crate) async fn heard<S>(ahead: &mut ReadAhead<S>, timeout: Duration) -> Sni
where
    S: AsyncRead + Unpin,
{
    let read = async {
        loop {
            match read(ahead.bytes()) {
                Read::Known(None) => return Sni::Absent,
                Read::Known(Some(name)) => return Sni::Name(name.into()),
                Read::More if ahead.bytes().len() < MAX_DETECTION_BYTES => {
                    if ahead.more().await.unwrap_or(0) == 0 {
                        return Sni::Unknown;
                    }
                }
                Read::More => return Sni::Unknown,
            }
        }
    };
    tokio::time::timeout(timeout, read).await.unwrap_or_default()
}

enum Read {
    More,
    Known(Option<String>),
}

fn read(bytes: &[u8]) -> Read {
    // Only a handshake is worth feeding to a parser.
    if bytes.first().is_some_and(|first| *first != 0x16) {
        return Read::Known(None);
    }
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        match acceptor.read_tls(&mut rest as &mut dyn io::Read) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Read::Known(accepted.client_hello().server_name().map(str::to_ascii_lowercase));
            }
            Ok(None) => {}
            Err(_) => return Read::Known(None),
        }
    }
    Read::More
}
