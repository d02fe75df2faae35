//! Certificates, peers and revocation, against certification authorities made for each test and over real handshakes.

mod answers;
mod authority;
mod distrust;
mod fuzz;
mod handshake;
mod peers;
mod revocation;
mod rotation;
mod signing;
