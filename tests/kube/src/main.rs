//! Starts and ends the API server that a developer looks at: `ambit-tests-kube up|down`, by `cargo xtask kube`.
#![forbid(unsafe_code)]

use std::{env, process::ExitCode};

use ambit_tests_kube::Standing;

fn main() -> ExitCode {
    let command = env::args().nth(1).unwrap_or_default();
    let result = match command.as_str() {
        "up" => up(),
        "down" => down(),
        _ => Err("usage: ambit-tests-kube up|down".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn up() -> Result<(), String> {
    let programs = ambit_tests_kube::programs()?;
    let standing = Standing::up(&programs)?;
    println!("Kubernetes runs at {} (process {})", standing.url, standing.id);
    println!("  export KUBECONFIG={}", standing.kubeconfig.display());
    println!("  alias kubectl={}", programs.kubectl.display());
    Ok(())
}

fn down() -> Result<(), String> {
    match Standing::down()? {
        Some(id) => println!("ended process {id}; its data stays for the next `up`"),
        None => println!("no server runs"),
    }
    Ok(())
}
