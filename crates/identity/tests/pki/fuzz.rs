//! The fuzzers' entries on inputs that are nearly right, and SPIFFE names.

use ambit_identity::{KeyExchange, SpiffeId, Trust, fuzzing};
use ambit_testing::identity;
use proptest::{prelude::*, sample::Index};
use std::sync::LazyLock;

use crate::authority::{Authority, response};

struct Seeds {
    answer: Vec<u8>,
    leaf: Vec<u8>,
    crl: Vec<u8>,
}

static SEEDS: LazyLock<Seeds> = LazyLock::new(|| {
    let authority = Authority::root("a").intermediate("b");
    let certificate = authority.workload(&identity("a", "x"), &Trust::new(KeyExchange::default()));
    let issued =
        ambit_identity::IssuedChain { chain: certificate.chain().to_vec(), roots: certificate.roots().to_vec() };
    let crl = authority.crl(&[&issued.chain[0]], 7);
    Seeds { answer: response(&issued).join("\0").into_bytes(), leaf: issued.chain[0].to_vec(), crl }
});

/// Changes of a few bytes, and of the length.
fn mutations() -> impl Strategy<Value = (Vec<(Index, u8)>, Option<Index>)> {
    (prop::collection::vec((any::<Index>(), any::<u8>()), 0..8), prop::option::weighted(0.2, any::<Index>()))
}

fn mutated(seed: &[u8], (changes, cut): &(Vec<(Index, u8)>, Option<Index>)) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for (place, byte) in changes {
        let place = place.index(bytes.len());
        bytes[place] = *byte;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #[test]
    fn changed_inputs_break_nothing(mutations in mutations()) {
        fuzzing::chain(&mutated(&SEEDS.answer, &mutations));
        let _ = fuzzing::certificate(&mutated(&SEEDS.leaf, &mutations));
        fuzzing::crl(&mutated(&SEEDS.crl, &mutations));
    }

    #[test]
    fn any_bytes_break_nothing(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        fuzzing::chain(&bytes);
        let _ = fuzzing::certificate(&bytes);
        fuzzing::crl(&bytes);
    }

    #[test]
    fn names_survive_printing_and_parsing(
        trust_domain in "[a-zA-Z0-9._-]{1,40}",
        namespace in "[a-z0-9-]{1,63}",
        account in "[a-z0-9.-]{1,63}",
    ) {
        let id = SpiffeId::new(&trust_domain, &namespace, &account).expect("plain parts");
        prop_assert_eq!(id.to_string().parse::<SpiffeId>(), Ok(id.clone()));
        prop_assert_eq!(format!("spiffe://{}", id.principal()), id.to_string());
    }

    #[test]
    fn what_parses_is_printed_as_it_was_written(text in "(spiffe://)?[a-z./*:%@? \\PC-]{0,60}(/ns/[a-z/]{0,9}/sa/\\PC{0,9})?") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            prop_assert_eq!(id.to_string(), text.clone());
            prop_assert_eq!(text.split('/').count(), 7);
        }
    }
}
