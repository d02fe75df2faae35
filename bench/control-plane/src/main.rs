//! What a mesh costs the control plane: to build, to push, and to change, from objects to the bytes at its clients, over real
//! gRPC on loopback. `cargo xtask bench control-plane` runs it.
//!
//! Each size runs in a process of its own, so that its memory is its own.
#![forbid(unsafe_code)]

mod clients;
mod objects;
mod sizes;
mod storm;

use std::{env, fs, process::Command, time::Duration};

use serde_json::{Value, json};

/// Numbers of workloads.
const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
/// Changes a second, in the storm.
const STORM_RATE: u32 = 1_000;
/// Workloads of the storm's mesh.
const STORM_SIZE: usize = 10_000;

fn main() -> Result<(), String> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["size", workloads] => {
            let workloads = workloads.parse().map_err(|error| format!("`{workloads}`: {error}"))?;
            println!("{}", run(sizes::measure(workloads))?);
            Ok(())
        }
        ["storm", seconds] => {
            let seconds = seconds.parse().map_err(|error| format!("`{seconds}`: {error}"))?;
            println!("{}", run(storm::measure(STORM_SIZE, STORM_RATE, Duration::from_secs(seconds)))?);
            Ok(())
        }
        [out] => all(out, "60"),
        [out, "--quick"] => all(out, "5"),
        _ => Err("usage: ambit-bench-control-plane OUT [--quick]".to_owned()),
    }
}

fn run(task: impl Future<Output = Result<Value, String>>) -> Result<Value, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(task)
}

fn all(out: &str, storm_seconds: &str) -> Result<(), String> {
    let mut rows = Vec::new();
    for size in SIZES {
        rows.push(child(&["size", &size.to_string()])?);
    }
    let storm = child(&["storm", storm_seconds])?;
    table(&rows, &storm);
    let failed = |error: std::io::Error| format!("`{out}`: {error}");
    fs::create_dir_all(out).map_err(failed)?;
    let text = json!({"rows": rows, "storm": storm}).to_string();
    fs::write(format!("{out}/control-plane.json"), text).map_err(failed)
}

/// Runs one part in a process of its own.
fn child(arguments: &[&str]) -> Result<Value, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(program).args(arguments).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{arguments:?}: {error}"))
}

fn table(rows: &[Value], storm: &Value) {
    println!(
        "| workloads | build, s | memory, MiB | first push, s | pod change, ms | policy change, ms | label change, ms | one of 10,000 policies, us |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let number = |row: &Value, field: &str| row[field].as_f64().map_or("-".to_owned(), |number| format!("{number:.3}"));
    for row in rows {
        let fields = ["build_s", "memory_mib", "first_push_s", "pod_ms", "policy_ms", "label_ms", "select_us"]
            .map(|field| number(row, field));
        println!("| {} | {} |", row["workloads"], fields.join(" | "));
    }
    for row in rows.iter().filter(|row| row["pod_ms_100"].is_number()) {
        println!(
            "100 clients, {} workloads: a pod's change has reached all after {} ms",
            row["workloads"],
            number(row, "pod_ms_100")
        );
    }
    println!(
        "storm: {} changes in {} s, the last at the client {} ms after it was made; lost: {}",
        storm["changes"],
        number(storm, "seconds"),
        number(storm, "behind_ms"),
        storm["lost"]
    );
    let of = |size: usize, field: &str| {
        let row = rows.iter().find(|row| row["workloads"] == size);
        row.and_then(|row| row[field].as_f64()).unwrap_or(f64::INFINITY)
    };
    let bar = |what: &str, measured: f64, at_most: f64| {
        let verdict = if measured <= at_most { "holds" } else { "MISSED" };
        println!("{verdict:<7} {what}: {measured:.3} of at most {at_most:.3}");
    };
    bar("100,000 workloads: build, s", of(100_000, "build_s"), 3.0);
    bar("100,000 workloads: memory, MiB", of(100_000, "memory_mib"), 600.0);
    bar("a pod's change at 100,000 workloads, ms", of(100_000, "pod_ms"), 2.0);
    bar("the same over that at 1,000", of(100_000, "pod_ms") / of(1_000, "pod_ms"), 2.0);
    bar("policies of a workload, of 10,000, us", of(100_000, "select_us"), 5.0);
}
