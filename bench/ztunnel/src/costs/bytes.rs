//! Per byte: a copy, the cipher, TCP over loopback, and TLS over it.

use std::{
    hint::black_box,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use rustls::{Stream, crypto::aws_lc_rs::kx_group};

use super::{Cost, TIME, Work, least, most, repeat, tls::Ends};
use crate::machine;

const GIB: f64 = 1_073_741_824.0;
/// What fits the cache of one core, and what fits none.
const HOT_BYTES: usize = 128 * 1024;
const COLD_BYTES: usize = 64 * 1024 * 1024;
/// A TLS record's longest content.
const RECORD_BYTES: usize = 16 * 1024;
/// One write of an application or proxy that has much to say.
const WRITE_BYTES: usize = 128 * 1024;

pub(super) fn measure() -> io::Result<Vec<Cost>> {
    let per_gib = |work: Work| Ok(work.processor_seconds / work.amount);
    let gbit = |work: Work| Ok(work.amount * GIB * 8.0 / 1e9 / work.seconds);
    let ends = Ends::new(kx_group::X25519)?;
    let cost = |what, value, unit| Cost { what, value, unit };
    let cpu = "CPU s/GiB";
    Ok(vec![
        cost("one copy, within the cache (128 KiB)", least(|| copy(HOT_BYTES).and_then(per_gib))?, cpu),
        cost("one copy, beyond it (64 MiB)", least(|| copy(COLD_BYTES).and_then(per_gib))?, cpu),
        cost("AES-256-GCM seal, 16 KiB records", least(|| seal(&AES_256_GCM).and_then(per_gib))?, cpu),
        cost("AES-256-GCM open, 16 KiB records", least(|| open(&AES_256_GCM).and_then(per_gib))?, cpu),
        cost("AES-128-GCM seal, 16 KiB records", least(|| seal(&AES_128_GCM).and_then(per_gib))?, cpu),
        cost("rustls, both ends in memory", least(|| in_memory(&ends).and_then(per_gib))?, cpu),
        cost("TCP over loopback, both ends", least(|| plain().and_then(per_gib))?, cpu),
        cost("TCP over loopback", most(|| plain().and_then(gbit))?, "Gbit/s"),
        cost("rustls over loopback, both ends", least(|| encrypted(&ends).and_then(per_gib))?, cpu),
        cost("rustls over loopback", most(|| encrypted(&ends).and_then(gbit))?, "Gbit/s"),
    ])
}

fn copy(bytes: usize) -> io::Result<Work> {
    let (from, mut to) = (vec![1_u8; bytes], vec![0_u8; bytes]);
    repeat(|| {
        black_box(&mut to).copy_from_slice(black_box(&from));
        Ok(gib(bytes))
    })
}

fn key(algorithm: &'static Algorithm) -> io::Result<LessSafeKey> {
    let key = UnboundKey::new(algorithm, &[7; 32][..algorithm.key_len()]);
    Ok(LessSafeKey::new(key.map_err(|_| io::Error::other("no key"))?))
}

/// The nonce repeats: nothing here is a secret.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([3; 12])
}

fn seal(algorithm: &'static Algorithm) -> io::Result<Work> {
    let key = key(algorithm)?;
    let mut record = vec![1_u8; RECORD_BYTES];
    repeat(|| {
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::from([0; 5]), black_box(&mut record));
        tag.map(|_| gib(RECORD_BYTES)).map_err(|_| io::Error::other("sealing failed"))
    })
}

fn open(algorithm: &'static Algorithm) -> io::Result<Work> {
    let key = key(algorithm)?;
    let mut sealed = vec![1_u8; RECORD_BYTES];
    key.seal_in_place_append_tag(nonce(), Aad::from([0; 5]), &mut sealed).map_err(|_| io::Error::other("no record"))?;
    // Opening overwrites the record, so this includes a copy within the cache.
    let mut record = sealed.clone();
    repeat(|| {
        record.copy_from_slice(&sealed);
        let opened = key.open_in_place(nonce(), Aad::from([0; 5]), black_box(&mut record));
        opened.map(|_| gib(RECORD_BYTES)).map_err(|_| io::Error::other("opening failed"))
    })
}

fn in_memory(ends: &Ends) -> io::Result<Work> {
    let (mut client, mut server) = ends.established()?;
    let (message, mut read) = (vec![1_u8; RECORD_BYTES], vec![0_u8; RECORD_BYTES]);
    let mut wire = Vec::with_capacity(2 * RECORD_BYTES);
    repeat(|| {
        client.writer().write_all(&message)?;
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        let mut bytes = wire.as_slice();
        while !bytes.is_empty() {
            server.read_tls(&mut bytes)?;
            server.process_new_packets().map_err(io::Error::other)?;
        }
        server.reader().read_exact(&mut read)?;
        Ok(gib(RECORD_BYTES))
    })
}

fn plain() -> io::Result<Work> {
    transfer(
        |mut sender| move |bytes: &[u8]| sender.write_all(bytes),
        |mut receiver| move |buffer: &mut [u8]| receiver.read(buffer),
    )
}

fn encrypted(ends: &Ends) -> io::Result<Work> {
    let (mut client, mut server) = (ends.client()?, ends.server()?);
    transfer(
        |mut sender| move |bytes: &[u8]| Stream::new(&mut client, &mut sender).write_all(bytes),
        |mut receiver| move |buffer: &mut [u8]| Stream::new(&mut server, &mut receiver).read(buffer),
    )
}

/// A thread that writes, a thread that reads, and what both cost once they run.
fn transfer<S, R>(
    send: impl FnOnce(TcpStream) -> S + Send,
    receive: impl FnOnce(TcpStream) -> R + Send,
) -> io::Result<Work>
where
    S: FnMut(&[u8]) -> io::Result<()>,
    R: FnMut(&mut [u8]) -> io::Result<usize>,
{
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    for stream in [&sender, &receiver] {
        stream.set_nodelay(true)?;
    }
    let end = sender.try_clone()?;
    let received = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut send = send(sender);
            let bytes = vec![1; WRITE_BYTES];
            while send(&bytes).is_ok() {}
        });
        scope.spawn(|| {
            let mut receive = receive(receiver);
            let mut buffer = vec![0; 2 * WRITE_BYTES];
            while let Ok(count @ 1..) = receive(&mut buffer) {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        std::thread::sleep(TIME / 4);
        let measured = (|| {
            let pid = std::process::id();
            let (start, cpu, bytes) =
                (Instant::now(), machine::processor_seconds(pid)?, received.load(Ordering::Relaxed));
            std::thread::sleep(TIME);
            let bytes = usize::try_from(received.load(Ordering::Relaxed) - bytes).unwrap_or_default();
            let seconds = start.elapsed().as_secs_f64();
            Ok(Work { amount: gib(bytes), seconds, processor_seconds: machine::processor_seconds(pid)? - cpu })
        })();
        end.shutdown(std::net::Shutdown::Both)?;
        measured
    })
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 bytes")]
fn gib(bytes: usize) -> f64 {
    bytes as f64 / GIB
}
