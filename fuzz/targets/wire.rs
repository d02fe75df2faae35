//! The node proxy's targets; `AMBIT_FUZZ_TARGET` names the one to run.
#![no_main]

use std::sync::LazyLock;

use ambit_fuzz::wire::{self, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(wire::chosen);

fuzz_target!(
    init: {
        // Its seeds must be there before the corpus is read.
        LazyLock::force(&TARGET);
    },
    |data: &[u8]| (TARGET.run)(data)
);
