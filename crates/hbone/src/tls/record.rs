//! The record layer after the handshake (RFC 8446 5): opens and seals in place, without a socket.

use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use rustls::{
    ConnectionTrafficSecrets, ExtractedSecrets, client::ClientConnectionData, crypto::cipher::make_tls13_aad,
    kernel::KernelConnection, server::ServerConnectionData,
};

use crate::limits::{MAX_POST_HANDSHAKE_BYTES, MAX_RECORDS_PER_KEY, MAX_UPDATES_WITHOUT_DATA};

/// Type, version, length.
pub(super) const HEADER_BYTES: usize = 5;
/// Plaintext of one record.
pub(crate) const MAX_PLAINTEXT_BYTES: usize = 16 * 1024;
/// What protection may add to it.
const MAX_EXPANSION_BYTES: usize = 256;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// Both directions of an established connection.
pub(crate) struct Records {
    tx: Direction,
    rx: Direction,
    keys: Keys,
    /// A handshake message of which not all has come.
    partial: Vec<u8>,
    updates_without_data: u32,
    /// The peer asked for new keys of ours.
    update_wanted: bool,
    /// Records after which we change our keys unasked.
    records_per_key: u64,
}

/// Gives the next traffic keys.
pub(super) enum Keys {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

struct Direction {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
    /// Records protected with this key.
    used: u64,
}

/// What an opened record holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// Bytes of the application, there in the record.
    Data(Range<usize>),
    /// Nothing for the application.
    Nothing,
    /// The peer will send nothing more.
    Closed,
}

/// Why the connection can't go on; each has the alert to tell the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("a TLS record is too long")]
    TooLong,
    #[error("a TLS record was altered or is not the next one")]
    Forged,
    #[error("a TLS message came that has no place here")]
    Unexpected,
    #[error("the peer ended TLS with alert {0}")]
    PeerAlert(u8),
    #[error("TLS has no further keys")]
    Keys,
}

/// Alerts sent (RFC 8446 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alert {
    CloseNotify = 0,
    UnexpectedMessage = 10,
    BadRecordMac = 20,
    RecordOverflow = 22,
    InternalError = 80,
}

/// Length of the record that `bytes` begins with, header included, once the header is there.
pub(super) fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, high, low, ..] = bytes else { return None };
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low])))
}

// === impl Records ===

impl Records {
    pub(super) fn new(secrets: ExtractedSecrets, keys: Keys) -> Result<Self, rustls::Error> {
        let direction = |(sequence, secrets)| {
            Direction::new(sequence, secrets).map_err(|_| rustls::Error::General("not an AES-GCM suite".to_owned()))
        };
        Ok(Self {
            tx: direction(secrets.tx)?,
            rx: direction(secrets.rx)?,
            keys,
            partial: Vec::new(),
            updates_without_data: 0,
            update_wanted: false,
            records_per_key: MAX_RECORDS_PER_KEY,
        })
    }

    /// Length of the first record in `bytes`, or `None` when not all of it is there yet.
    pub(crate) fn complete(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
        match record_bytes(bytes) {
            Some(length) if length > HEADER_BYTES + MAX_PLAINTEXT_BYTES + MAX_EXPANSION_BYTES => {
                Err(RecordError::TooLong)
            }
            Some(length) if length <= bytes.len() => Ok(Some(length)),
            _ => Ok(None),
        }
    }

    /// Opens `record`, whole and alone, in place.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<Opened, RecordError> {
        let (header, body) = record.split_at_mut_checked(HEADER_BYTES).ok_or(RecordError::Unexpected)?;
        if header[0] != APPLICATION_DATA {
            return Err(RecordError::Unexpected);
        }
        let aad = Aad::from([header[0], header[1], header[2], header[3], header[4]]);
        let nonce = self.rx.nonce()?;
        let inner = self.rx.key.open_in_place(nonce, aad, body).map_err(|_| RecordError::Forged)?;
        // The content's type is the last byte that isn't padding.
        let end = inner.iter().rposition(|&byte| byte != 0).ok_or(RecordError::Unexpected)?;
        if end > MAX_PLAINTEXT_BYTES {
            return Err(RecordError::TooLong);
        }
        match inner[end] {
            APPLICATION_DATA if self.partial.is_empty() => {
                self.updates_without_data = 0;
                Ok(Opened::Data(HEADER_BYTES..HEADER_BYTES + end))
            }
            HANDSHAKE if end > 0 => {
                self.partial.extend_from_slice(&inner[..end]);
                self.handshake().map(|()| Opened::Nothing)
            }
            ALERT => match inner[..end] {
                // `close_notify`, and `user_canceled`, which announces it.
                [_, 0] => Ok(Opened::Closed),
                [_, 90] => Ok(Opened::Nothing),
                [_, alert] => Err(RecordError::PeerAlert(alert)),
                _ => Err(RecordError::Unexpected),
            },
            _ => Err(RecordError::Unexpected),
        }
    }

    /// Messages that come after the handshake: tickets, which are not kept, and new keys.
    fn handshake(&mut self) -> Result<(), RecordError> {
        while let [kind, a, b, c, ..] = self.partial[..] {
            let end = 4 + u32::from_be_bytes([0, a, b, c]) as usize;
            if end > MAX_POST_HANDSHAKE_BYTES {
                return Err(RecordError::TooLong);
            }
            let Some(body) = self.partial.get(4..end) else { break };
            match (kind, body, &self.keys) {
                (NEW_SESSION_TICKET, _, Keys::Client(_)) => {}
                // The new keys hold from the next record on, so nothing may follow in this one.
                (KEY_UPDATE, [wanted @ (0 | 1)], _) if self.partial.len() == end => {
                    self.updates_without_data += 1;
                    self.update_wanted |= *wanted == 1;
                    self.rx = Direction::from_update(self.keys.update(false))?;
                }
                _ => return Err(RecordError::Unexpected),
            }
            if self.updates_without_data > MAX_UPDATES_WITHOUT_DATA {
                return Err(RecordError::Unexpected);
            }
            self.partial.drain(..end);
        }
        Ok(())
    }

    /// Whether there is something to send though the application has nothing: an answer to a key update.
    pub(crate) fn wants_to_send(&self) -> bool {
        self.update_wanted
    }

    /// Appends one record of application data to `out`: `fill` appends at most [`MAX_PLAINTEXT_BYTES`] of plaintext.
    pub(crate) fn seal(&mut self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), RecordError> {
        self.refresh(out)?;
        self.tx.seal(out, APPLICATION_DATA, fill)
    }

    /// Appends new keys where they are due: the peer asked, or the present ones have protected enough.
    pub(crate) fn refresh(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        if self.update_wanted || self.tx.used >= self.records_per_key {
            self.update_wanted = false;
            self.tx.seal(out, HANDSHAKE, |out| out.extend_from_slice(&[KEY_UPDATE, 0, 0, 1, 0]))?;
            self.tx = Direction::from_update(self.keys.update(true))?;
        }
        Ok(())
    }

    /// Appends an alert; nothing may follow it.
    pub(crate) fn seal_alert(&mut self, out: &mut Vec<u8>, alert: Alert) -> Result<(), RecordError> {
        let level = if alert == Alert::CloseNotify { 1 } else { 2 };
        self.tx.seal(out, ALERT, |out| out.extend_from_slice(&[level, alert as u8]))
    }
}

// === impl Keys ===

impl Keys {
    fn update(&mut self, sending: bool) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match (self, sending) {
            (Self::Client(keys), true) => keys.update_tx_secret(),
            (Self::Client(keys), false) => keys.update_rx_secret(),
            (Self::Server(keys), true) => keys.update_tx_secret(),
            (Self::Server(keys), false) => keys.update_rx_secret(),
        }
    }
}

// === impl Direction ===

impl Direction {
    fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(RecordError::Keys),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Keys)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Keys)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence, used: 0 })
    }

    fn from_update(update: Result<(u64, ConnectionTrafficSecrets), rustls::Error>) -> Result<Self, RecordError> {
        let (sequence, secrets) = update.map_err(|_| RecordError::Keys)?;
        Self::new(sequence, secrets)
    }

    /// The nonce of the next record. INVARIANT: none is ever given twice under one key.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Keys)?;
        self.used += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }

    fn seal(&mut self, out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), RecordError> {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_BYTES]);
        fill(out);
        let length = out.len() - start - HEADER_BYTES;
        if length > MAX_PLAINTEXT_BYTES {
            return Err(RecordError::TooLong);
        }
        out.push(kind);
        let protected = length + 1 + MAX_TAG_LEN;
        let header = make_tls13_aad(protected);
        out[start..start + HEADER_BYTES].copy_from_slice(&header);
        let nonce = self.nonce()?;
        let body = &mut out[start + HEADER_BYTES..];
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(header), body).map_err(|_| RecordError::Keys)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

// === impl RecordError ===

impl RecordError {
    /// What to tell the peer, unless the error is its own alert.
    pub(crate) fn alert(self) -> Option<Alert> {
        match self {
            Self::TooLong => Some(Alert::RecordOverflow),
            Self::Forged => Some(Alert::BadRecordMac),
            Self::Unexpected => Some(Alert::UnexpectedMessage),
            Self::Keys => Some(Alert::InternalError),
            Self::PeerAlert(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ambit_testing::{TestMesh, identity};

    use super::*;
    use crate::tls;

    async fn pair() -> (Records, Records) {
        let mesh = TestMesh::new();
        let certificate = mesh.certificates.get(&identity("a", "x")).await.expect("a certificate");
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let accepting = tls::accept(&mut far, tls::server_config(&certificate));
        let client = async {
            let config = tls::client_config(&certificate, &[identity("a", "x")]);
            let mut client = tls::connect(&mut near, config).await.expect("a client");
            // The end of the handshake, which otherwise goes out with the first frames.
            let last = std::mem::take(&mut client.to_send);
            tokio::io::AsyncWriteExt::write_all(&mut near, &last).await.expect("written");
            client.records
        };
        let (client, server) = tokio::join!(client, accepting);
        (client, server.expect("a server").records)
    }

    /// Opens all records in `bytes`; gives the plaintext.
    fn open_all(records: &mut Records, bytes: &mut [u8]) -> Result<Vec<u8>, RecordError> {
        let (mut at, mut plain) = (0, Vec::new());
        while let Some(length) = Records::complete(&bytes[at..])? {
            if let Opened::Data(range) = records.open(&mut bytes[at..at + length])? {
                plain.extend_from_slice(&bytes[at + range.start..at + range.end]);
            }
            at += length;
        }
        assert_eq!(at, bytes.len(), "no half records");
        Ok(plain)
    }

    #[tokio::test]
    async fn keys_change_before_they_are_worn_out() {
        let (mut client, mut server) = pair().await;
        client.records_per_key = 3;
        let mut wire = Vec::new();
        for turn in 0..20_u8 {
            client.seal(&mut wire, |out| out.extend_from_slice(&[turn; 3])).expect("sealed");
        }
        let expected: Vec<u8> = (0..20).flat_map(|turn| [turn; 3]).collect();
        // Twenty records of data, and one with new keys after every third record.
        assert!(wire.len() > 20 * 25 + 5 * 27, "{}", wire.len());
        assert_eq!(open_all(&mut server, &mut wire), Ok(expected));
        assert!(!server.wants_to_send(), "an update that asks for none");
    }

    #[tokio::test]
    async fn records_must_come_whole_in_order_and_unaltered() {
        let (mut client, mut server) = pair().await;
        let mut records = Vec::new();
        for text in [&b"first"[..], b"second", &[7; MAX_PLAINTEXT_BYTES]] {
            let mut record = Vec::new();
            client.seal(&mut record, |out| out.extend_from_slice(text)).expect("sealed");
            records.push(record);
        }
        let mut later = records[1].clone();
        assert_eq!(server.open(&mut later), Err(RecordError::Forged), "out of order");
        let (_, mut fresh) = pair().await;
        assert_eq!(fresh.open(&mut records[0].clone()), Err(RecordError::Forged), "another connection's");
        let too_much = client.seal(&mut Vec::new(), |out| out.resize(HEADER_BYTES + MAX_PLAINTEXT_BYTES + 1, 0));
        assert_eq!(too_much, Err(RecordError::TooLong));
        assert_eq!(Records::complete(&[23, 3, 3, 0xff, 0xff]), Err(RecordError::TooLong));
        assert_eq!(Records::complete(&[23, 3, 3, 0, 1]), Ok(None));
        for short in [&[][..], &[23, 3, 3], &[22, 3, 3, 0, 1, 0]] {
            assert_eq!(server.open(&mut short.to_vec()), Err(RecordError::Unexpected), "{short:?}");
        }
    }

    #[tokio::test]
    async fn messages_other_than_data_are_few_and_known() {
        type Case = (&'static str, u8, &'static [u8], Result<Opened, RecordError>);
        let cases: [Case; 9] = [
            ("close_notify", ALERT, &[1, 0], Ok(Opened::Closed)),
            ("user_canceled", ALERT, &[1, 90], Ok(Opened::Nothing)),
            ("an alert", ALERT, &[2, 42], Err(RecordError::PeerAlert(42))),
            ("half an alert", ALERT, &[2], Err(RecordError::Unexpected)),
            ("new keys", HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 1], Ok(Opened::Nothing)),
            ("new keys with something behind", HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0, 4], Err(RecordError::Unexpected)),
            ("a client's ticket", HANDSHAKE, &[NEW_SESSION_TICKET, 0, 0, 0], Err(RecordError::Unexpected)),
            ("an endless message", HANDSHAKE, &[NEW_SESSION_TICKET, 0xff, 0, 0], Err(RecordError::TooLong)),
            ("heartbeat", 24, &[1], Err(RecordError::Unexpected)),
        ];
        for (name, kind, content, expected) in cases {
            let (mut client, mut server) = pair().await;
            let mut record = Vec::new();
            client.tx.seal(&mut record, kind, |out| out.extend_from_slice(content)).expect("sealed");
            assert_eq!(server.open(&mut record), expected, "{name}");
            assert_eq!(server.wants_to_send(), name == "new keys", "{name}");
        }
    }

    #[tokio::test]
    async fn new_keys_without_end_end_the_connection() {
        let (mut client, mut server) = pair().await;
        client.records_per_key = 0;
        for _ in 0..MAX_UPDATES_WITHOUT_DATA {
            let mut record = Vec::new();
            client.refresh(&mut record).expect("sealed");
            assert_eq!(server.open(&mut record), Ok(Opened::Nothing));
        }
        let mut record = Vec::new();
        client.refresh(&mut record).expect("sealed");
        assert_eq!(server.open(&mut record), Err(RecordError::Unexpected));
    }
}
