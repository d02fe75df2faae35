//! Random policies, connections and requests: the engine says what the reference says.
#![no_main]

use ambit_fuzz::Scene;
use arbitrary::Unstructured;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    match Scene::new(&mut Unstructured::new(data)) {
        Ok(scene) => {
            scene.check();
            Corpus::Keep
        }
        Err(_) => Corpus::Reject,
    }
});
