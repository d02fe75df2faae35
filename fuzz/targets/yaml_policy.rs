//! Any bytes as a manifest: reading, validating, compiling and asking never panics, and what the validation lets through
//! compiles.
#![no_main]

use ambit_api::{AuthorizationPolicy, Resource, load_text, render};
use ambit_fuzz::{Request, connection, options};
use ambit_policy::compile;
use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let loaded = load_text("policy.yaml", &text);
    assert_eq!(render(&loaded.diagnostics, false).is_empty(), loaded.diagnostics.is_empty());
    let policies: Vec<AuthorizationPolicy> = loaded
        .objects
        .iter()
        .filter_map(|object| match &object.resource {
            Resource::AuthorizationPolicy(policy) => Some((**policy).clone()),
            _ => None,
        })
        .collect();
    let compiled = match compile(&policies, &options()) {
        Ok(compiled) => compiled,
        Err(error) => {
            assert!(loaded.has_errors(), "loads without an error and doesn't compile: {error}");
            return;
        }
    };
    let mut bytes = Unstructured::new(data);
    let (Ok(connection), Ok(request)) = (connection(&mut bytes), Request::new(&mut bytes)) else { return };
    let residual = compiled.for_connection(&connection);
    assert!(!residual.decide_connection().reason.is_empty());
    assert!(!residual.decide(&request.facts()).reason.is_empty());
});
