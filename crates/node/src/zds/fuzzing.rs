//! Drives the handling of messages with any bytes, without sockets. For `fuzz/`; not an interface.

use std::collections::BTreeMap;

use super::message::{
    DecodeError, Request, WorkloadInfo, decode_ack, decode_request, encode_ack, encode_request, is_hello,
};
use super::table::{OrderError, Serve, Table};

/// Serves pods in its mind; every second network refuses at first.
#[derive(Default)]
struct Model {
    running: BTreeMap<String, u8>,
    failures: u8,
}

impl Serve<u8> for Model {
    fn start(&mut self, uid: &str, _info: &WorkloadInfo, network: &u8) -> Result<(), String> {
        if network % 2 == 1 && self.failures > 0 {
            self.failures -= 1;
            return Err("refused".to_owned());
        }
        assert!(self.running.insert(uid.to_owned(), *network).is_none(), "`{uid}` is started twice");
        Ok(())
    }

    fn stop(&mut self, uid: &str) {
        assert!(self.running.remove(uid).is_some(), "`{uid}` is stopped without having been started");
    }
}

/// Handles messages in turn, each with this many namespaces; the table and what is served must agree throughout.
///
/// # Panics
/// When they don't.
pub fn messages<'a>(failures: u8, messages: impl IntoIterator<Item = (&'a [u8], Vec<u8>)>) {
    let mut table = Table::new();
    let mut model = Model { running: BTreeMap::new(), failures };
    table.connected();
    for (bytes, files) in messages {
        let _ = (is_hello(bytes), decode_ack(bytes));
        let outcome = match decode_request(bytes, files) {
            Ok(request) => {
                let again = decode_request(
                    &encode_request(&request),
                    match &request {
                        Request::Add { network, .. } => vec![*network],
                        _ => Vec::new(),
                    },
                );
                assert_eq!(again.as_ref(), Ok(&request), "a request reads as it was written");
                match table.handle(request, &mut model) {
                    Ok(outcome) => outcome,
                    // The proxy ends here.
                    Err(OrderError::SecondSnapshot | OrderError::LateKeep) => return,
                }
            }
            Err(DecodeError::Info(_)) => return,
            Err(error) => {
                // The proxy connects anew.
                table.connected();
                Err(error.to_string())
            }
        };
        assert_eq!(decode_ack(&encode_ack(&outcome)).map(|answer| answer.is_ok()), Ok(outcome.is_ok()));
        assert_eq!(table.running(), model.running.len(), "the table says what is served");
    }
    table.retry(&mut model);
    assert_eq!(table.running(), model.running.len(), "also after another try");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds without `AMBIT_FUZZ_ROUNDS`.
    const ROUNDS: u64 = 2_000;
    /// Messages of one round.
    const MESSAGES: usize = 24;

    /// A generator that repeats itself: a failure can be had again.
    struct Random(u64);

    impl Random {
        fn next(&mut self, below: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % below as u64).unwrap_or_default()
        }

        fn message(&mut self) -> (Vec<u8>, Vec<u8>) {
            let uid: Box<str> = ["a", "b", "c", ""][self.next(4)].into();
            let network = u8::try_from(self.next(3)).unwrap_or_default();
            let name = ["n", "m"][self.next(2)].to_owned();
            let info = WorkloadInfo { name, namespace: "ns".to_owned(), service_account: "sa".to_owned() };
            let request = match self.next(8) {
                0..4 => Request::Add { uid, info, network },
                4 | 5 => Request::Del { uid },
                6 => Request::Keep { uid },
                _ => Request::SnapshotSent,
            };
            let mut files = if matches!(request, Request::Add { .. }) { vec![network] } else { Vec::new() };
            let mut bytes = encode_request(&request);
            match self.next(16) {
                0 => bytes.truncate(self.next(bytes.len() + 1)),
                1 => {
                    let place = self.next(bytes.len());
                    bytes[place] ^= 1 << self.next(8);
                }
                2 => bytes.push(u8::try_from(self.next(256)).unwrap_or_default()),
                3 => files.push(network),
                4 => files.clear(),
                _ => {}
            }
            (bytes, files)
        }
    }

    #[test]
    fn the_table_and_what_is_served_agree_whatever_comes() {
        let rounds = std::env::var("AMBIT_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for _ in 0..rounds {
            let failures = u8::try_from(random.next(4)).unwrap_or_default();
            let said: Vec<_> = (0..MESSAGES).map(|_| random.message()).collect();
            messages(failures, said.iter().map(|(bytes, files)| (bytes.as_slice(), files.clone())));
        }
    }
}
