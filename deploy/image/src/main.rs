//! `ambit-image PROGRAM FOLDER`: writes an image of the program; `cargo xtask image` calls it.
#![forbid(unsafe_code)]

use std::{env, path::Path, process::ExitCode};

use ambit_image::{Contents, write};

/// Where this machine keeps the authorities that it believes, on most distributions.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [program, folder] = arguments.as_slice() else {
        eprintln!("usage: ambit-image PROGRAM FOLDER");
        return ExitCode::FAILURE;
    };
    let certificates = Path::new(CERTIFICATES);
    let contents = Contents {
        program: Path::new(program),
        certificates: certificates.exists().then_some(certificates),
        name: concat!("ambit:", env!("CARGO_PKG_VERSION")),
        version: env!("CARGO_PKG_VERSION"),
    };
    match write(&contents, Path::new(folder)) {
        Ok(digest) => {
            println!("{} {digest} in `{folder}`", contents.name);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the image can't be written: {error}");
            ExitCode::FAILURE
        }
    }
}
