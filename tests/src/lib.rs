//! Runs the `ambit` binary as a user would and looks at what comes out, for the whole-mesh tests in `tests/`.
//!
//! As root every test runs twice where it can: as root and as an ordinary user (`nobody`), because the two take
//! different ways through the kernel.
#![forbid(unsafe_code)]

pub mod answers;
mod forward;
pub mod go;
pub mod http1;
pub mod http2;
mod mesh;
mod place;
pub mod python;
pub mod records;
pub mod tls;

pub use forward::Forward;
pub use mesh::{Mesh, Output, Running, finish};
pub use place::{Place, each_user};
