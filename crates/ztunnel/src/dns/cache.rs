//! Answers of resolvers, kept for as long as they allow and in bounded number. Each pod has its own: one pod can't learn
//! from it, or spoil in it, what another one asks. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{RData, Record},
};

use super::answer::wants_dnssec;
use crate::limits::{MAX_DNS_CACHE_BYTES, MAX_DNS_CACHE_ENTRIES, MAX_DNS_NEGATIVE_TTL, MAX_DNS_TTL};

/// What an answer hangs on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    query: Query,
    dnssec_ok: bool,
    checking_disabled: bool,
}

/// The answers of one pod's resolvers.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// Keys by the number of their entry, so the oldest comes first.
    order: BTreeMap<u64, Key>,
    next: u64,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<Message>,
    stored: Instant,
    lives: Duration,
    number: u64,
    bytes: usize,
}

// === impl Key ===

impl Key {
    /// The key of a request with one question.
    pub(crate) fn of(request: &Message) -> Option<Self> {
        let mut query = request.queries.first()?.clone();
        query.set_name(query.name().to_lowercase());
        let checking_disabled = request.metadata.checking_disabled;
        Some(Self { query, dnssec_ok: wants_dnssec(request), checking_disabled })
    }
}

// === impl Cache ===

impl Cache {
    /// The answer, with the time it has been here taken off its records' lives.
    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.entries.get(key)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lives {
            self.remove(key);
            return None;
        }
        let mut answer = (*entry.answer).clone();
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut answer.answers, &mut answer.authorities, &mut answer.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(seconds);
        }
        Some(answer)
    }

    /// Keeps an answer for as long as it may be kept, if it may.
    pub(crate) fn put(&mut self, key: Key, answer: &Message, bytes: usize, now: Instant) {
        self.remove(&key);
        let Some(lives) = lifetime(answer).filter(|lives| !lives.is_zero()) else { return };
        if bytes > MAX_DNS_CACHE_BYTES {
            return;
        }
        while self.entries.len() >= MAX_DNS_CACHE_ENTRIES || self.bytes + bytes > MAX_DNS_CACHE_BYTES {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.remove(&oldest);
        }
        let number = self.next;
        self.next += 1;
        self.bytes += bytes;
        self.order.insert(number, key.clone());
        self.entries.insert(key, Entry { answer: Arc::new(answer.clone()), stored: now, lives, number, bytes });
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes -= entry.bytes;
            self.order.remove(&entry.number);
        }
    }
}

/// How long an answer may be kept; nothing if not at all (RFC 2181 5.2, RFC 2308 5).
pub(super) fn lifetime(answer: &Message) -> Option<Duration> {
    if answer.metadata.truncation {
        return None;
    }
    let shortest = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let seconds = |ttl: u32, limit: Duration| Duration::from_secs(ttl.into()).min(limit);
    let asked = answer.queries.first()?;
    let is_answered = answer.answers.iter().any(|record| record.record_type() == asked.query_type());
    match answer.metadata.response_code {
        ResponseCode::NoError if is_answered => Some(seconds(shortest(&answer.answers)?, MAX_DNS_TTL)),
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = answer.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            })?;
            let ttl = shortest(&answer.answers).map_or(soa, |chain| chain.min(soa));
            Some(seconds(ttl, MAX_DNS_NEGATIVE_TTL))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::OpCode,
        rr::{
            Name, RecordType,
            rdata::{A, CNAME, SOA},
        },
    };

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn request(text: &str) -> Message {
        let mut request = Message::query();
        request.add_query(Query::query(name(text), RecordType::A));
        request
    }

    fn a(ttl: u32) -> Record {
        Record::from_rdata(name("a.example."), ttl, RData::A(A([192, 0, 2, 1].into())))
    }

    fn cname(ttl: u32) -> Record {
        Record::from_rdata(name("a.example."), ttl, RData::CNAME(CNAME(name("b.example."))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let soa = SOA::new(name("ns.example."), name("root.example."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("example."), ttl, RData::SOA(soa))
    }

    fn answer(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut answer = Message::response(1, OpCode::Query);
        answer.metadata.response_code = code;
        answer.add_queries(request("a.example.").queries);
        answer.answers = answers;
        answer.authorities = authorities;
        answer
    }

    #[test]
    fn how_long_answers_live() {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        let max = u32::try_from(MAX_DNS_TTL.as_secs()).expect("seconds");
        let max_negative = u32::try_from(MAX_DNS_NEGATIVE_TTL.as_secs()).expect("seconds");
        let cases = [
            ("the shortest record counts", answer(NoError, vec![a(60), a(30)], vec![]), Some(30)),
            ("an alias counts too", answer(NoError, vec![cname(7), a(60)], vec![]), Some(7)),
            ("zero isn't kept", answer(NoError, vec![a(0)], vec![]), Some(0)),
            ("not forever", answer(NoError, vec![a(u32::MAX)], vec![]), Some(max)),
            ("no such name: the SOA's minimum", answer(NXDomain, vec![], vec![soa(600, 20)]), Some(20)),
            ("no such name: the SOA's own life", answer(NXDomain, vec![], vec![soa(15, 20)]), Some(15)),
            ("no such name, for long", answer(NXDomain, vec![], vec![soa(99_999, 99_999)]), Some(max_negative)),
            ("no such name, without a SOA", answer(NXDomain, vec![], vec![]), None),
            ("no such type", answer(NoError, vec![], vec![soa(600, 20)]), Some(20)),
            ("an alias to nothing", answer(NoError, vec![cname(5)], vec![soa(600, 20)]), Some(5)),
            ("an alias to nothing known", answer(NoError, vec![cname(5)], vec![]), None),
            ("a failure", answer(ServFail, vec![], vec![soa(600, 20)]), None),
            ("a refusal", answer(Refused, vec![a(60)], vec![]), None),
        ];
        for (what, answer, seconds) in cases {
            assert_eq!(lifetime(&answer), seconds.map(|s| Duration::from_secs(s.into())), "{what}");
        }
        let mut cut = answer(NoError, vec![a(60)], vec![]);
        cut.metadata.truncation = true;
        assert_eq!(lifetime(&cut), None, "a cut answer isn't whole");
    }

    #[test]
    fn records_age_and_expire_and_keys_tell_requests_apart() {
        let start = Instant::now();
        let mut cache = Cache::default();
        let key = Key::of(&request("A.Example.")).expect("a key");
        cache.put(key.clone(), &answer(ResponseCode::NoError, vec![a(30)], vec![soa(90, 1)]), 100, start);
        let aged = cache.get(&Key::of(&request("a.example.")).expect("a key"), start + Duration::from_secs(10));
        let aged = aged.expect("spelling doesn't matter");
        assert_eq!((aged.answers[0].ttl, aged.authorities[0].ttl), (20, 80));
        let mut other = request("a.example.");
        other.metadata.checking_disabled = true;
        assert!(cache.get(&Key::of(&other).expect("a key"), start).is_none());
        assert!(cache.get(&Key::of(&request("b.example.")).expect("a key"), start).is_none());
        assert!(cache.get(&key, start + Duration::from_secs(30)).is_none());
        assert!(cache.entries.is_empty() && cache.order.is_empty() && cache.bytes == 0);
    }

    #[test]
    fn the_cache_is_bounded_in_entries_and_bytes_and_the_oldest_go_first() {
        let now = Instant::now();
        let positive = answer(ResponseCode::NoError, vec![a(30)], vec![]);
        let key = |i: usize| Key::of(&request(&format!("n{i}.example."))).expect("a key");
        let mut cache = Cache::default();
        for i in 0..2 * MAX_DNS_CACHE_ENTRIES {
            cache.put(key(i), &positive, 10, now);
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (MAX_DNS_CACHE_ENTRIES, MAX_DNS_CACHE_ENTRIES));
        assert!(cache.get(&key(0), now).is_none() && cache.get(&key(2 * MAX_DNS_CACHE_ENTRIES - 1), now).is_some());

        let mut cache = Cache::default();
        let big = MAX_DNS_CACHE_BYTES / 4;
        for i in 0..10 {
            cache.put(key(i), &positive, big, now);
            cache.put(key(i), &positive, big, now);
        }
        assert_eq!((cache.entries.len(), cache.bytes), (4, 4 * big));
        cache.put(key(99), &positive, MAX_DNS_CACHE_BYTES + 1, now);
        assert!(cache.get(&key(99), now).is_none() && cache.get(&key(9), now).is_some());
    }
}
