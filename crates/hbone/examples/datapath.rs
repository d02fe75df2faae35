//! Measures the data path in one process: application, TCP, HBONE, TCP, application, over loopback. Each proxy end has a
//! runtime of its own, so its CPU time can be told from the load's.
//!
//! `datapath bulk|back|exchange|connect|tunnels [STREAMS] [SECONDS] [WORKERS]`
#![allow(clippy::print_stdout, reason = "prints its figures")]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ambit_hbone::{
    Connect, HostNetwork, Limits, Network, Pool, accept,
    copy::{HALF_CLOSE_IDLE_TIMEOUT, bidirectional},
};
use ambit_testing::{TestMesh, identity};
use http::HeaderMap;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
};

const CHUNK_BYTES: usize = 128 * 1024;
const EXCHANGE_BYTES: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize, default: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let mode = arguments.get(1).map_or("bulk", String::as_str);
    let (streams, workers) = (number(2, 1), number(4, 1));
    let time = Duration::from_secs(number(3, 5) as u64);
    let (near, far) = (proxy("near", workers), proxy("far", workers));
    let app = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let app_addr = app.local_addr().expect("bound");
    let limits = Limits {
        max_streams_per_connection: if mode == "tunnels" { 1 } else { 100 },
        max_connections_per_peer: 1 << 16,
        ..Limits::default()
    };
    let entry = start(&near, &far, app_addr, &limits);
    serve(app, mode == "back");
    let ended = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicU64::new(0));
    // Buffers grow and the first handshakes are done before the clock runs.
    run(mode, entry, streams, Duration::from_millis(500), &ended, &Arc::default());
    let before = cpu();
    let started = Instant::now();
    let mut latencies = run(mode, entry, streams, time, &ended, &done);
    let took = started.elapsed().as_secs_f64();
    let used: BTreeMap<_, _> = cpu()
        .into_iter()
        .map(|(name, at)| {
            let since = before.get(&name).copied().unwrap_or(0.0);
            (name, at - since)
        })
        .collect();
    let proxies: f64 = ["near", "far"].iter().filter_map(|name| used.get(*name)).sum();
    let done = done.load(Ordering::Relaxed) as f64;
    if mode == "bulk" || mode == "back" {
        let gib = done / f64::from(1 << 30);
        println!(
            "{mode} {streams}: {:.2} Gbit/s, {:.3} CPU-s/GiB in the proxies {used:.2?}",
            done * 8e-9 / took,
            proxies / gib
        );
    } else {
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).copied().unwrap_or(0);
        println!(
            "{mode} {streams}: {:.0}/s, p50 {} p99 {} us, {:.2} CPU-us each in the proxies {used:.2?}",
            done / took,
            at(0.5),
            at(0.99),
            proxies * 1e6 / done
        );
    }
    std::process::exit(0);
}

fn proxy(name: &'static str, workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).thread_name(name).enable_all().build().expect("a runtime")
}

/// CPU seconds used until now, by thread name.
fn cpu() -> BTreeMap<String, f64> {
    let mut used = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").expect("own tasks").flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let ns: f64 = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
        *used.entry(read("comm").trim().to_owned()).or_default() += ns * 1e-9;
    }
    used
}

/// Both proxies; gives the address whose connections come out at `app`.
fn start(near: &Runtime, far: &Runtime, app: SocketAddr, limits: &Limits) -> SocketAddr {
    let mesh = far.block_on(async { TestMesh::new() });
    let certificates = Arc::clone(&mesh.certificates);
    let (tell, told) = std::sync::mpsc::channel();
    let accepting = limits.clone();
    far.spawn(async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        tell.send(listener.local_addr().expect("bound")).expect("heard");
        let certificate = mesh.certificates.get(&identity("a", "server")).await.expect("a certificate");
        while let Ok((stream, _)) = listener.accept().await {
            let (certificate, limits) = (Arc::clone(&certificate), accepting.clone());
            tokio::spawn(async move {
                let Ok(mut connection) = accept(stream, certificate, &limits).await else { return };
                while let Some(Ok(request)) = connection.next().await {
                    tokio::spawn(async move {
                        let mut stream = TcpStream::connect(app).await.expect("the application");
                        stream.set_nodelay(true).expect("set");
                        let Ok(mut tunnel) = request.accept(HeaderMap::new()) else { return };
                        let _ = bidirectional(&mut tunnel, &mut stream, HALF_CLOSE_IDLE_TIMEOUT).await;
                    });
                }
            });
        }
    });
    let peer = told.recv().expect("told");
    let (tell, told) = std::sync::mpsc::channel();
    let limits = limits.clone();
    near.spawn(async move {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        tell.send(listener.local_addr().expect("bound")).expect("heard");
        let pool = Pool::new(certificates, limits);
        let network: Arc<dyn Network> = Arc::new(HostNetwork);
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.set_nodelay(true).expect("set");
            let request = Connect {
                network: Arc::clone(&network),
                source: identity("a", "x"),
                peer,
                expected: vec![identity("a", "server")],
                authority: app.to_string(),
                headers: HeaderMap::new(),
                mark: None,
                distant: false,
            };
            let pool = Arc::clone(&pool);
            tokio::spawn(async move {
                match pool.connect(request).await {
                    Ok(mut tunnel) => {
                        let _ = bidirectional(&mut stream, &mut tunnel, HALF_CLOSE_IDLE_TIMEOUT).await;
                    }
                    Err(error) => println!("{error}"),
                }
            });
        }
    });
    told.recv().expect("told")
}

/// The application: sends without end (`back`), or echoes 64 bytes, or swallows more.
fn serve(listener: StdListener, back: bool) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    std::thread::Builder::new()
        .name("server".to_owned())
        .spawn(move || {
            runtime.block_on(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                listener.set_nonblocking(true).expect("set");
                let listener = TcpListener::from_std(listener).expect("a listener");
                while let Ok((mut stream, _)) = listener.accept().await {
                    stream.set_nodelay(true).expect("set");
                    tokio::spawn(async move {
                        let mut buffer = vec![0; CHUNK_BYTES];
                        if back {
                            while stream.write_all(&buffer).await.is_ok() {}
                            return;
                        }
                        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                            if length <= EXCHANGE_BYTES && stream.write_all(&buffer[..length]).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            });
        })
        .expect("a thread");
}

fn run(
    mode: &str,
    entry: SocketAddr,
    streams: usize,
    time: Duration,
    ended: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> Vec<u32> {
    ended.store(false, Ordering::SeqCst);
    match mode {
        "bulk" | "back" => {
            let back = mode == "back";
            let threads: Vec<_> = (0..streams)
                .map(|_| {
                    let (ended, done) = (Arc::clone(ended), Arc::clone(done));
                    let moving = move || move_bytes(entry, back, &ended, &done);
                    std::thread::Builder::new().name("load".to_owned()).spawn(moving).expect("a thread")
                })
                .collect();
            std::thread::sleep(time);
            ended.store(true, Ordering::SeqCst);
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
            Vec::new()
        }
        _ => load(mode == "exchange", entry, streams, time, done),
    }
}

fn move_bytes(entry: SocketAddr, back: bool, ended: &AtomicBool, done: &AtomicU64) {
    let mut stream = StdStream::connect(entry).expect("connected");
    let mut buffer = vec![7; CHUNK_BYTES];
    if back {
        while !ended.load(Ordering::Relaxed) {
            let length = stream.read(&mut buffer).expect("read");
            done.fetch_add(length as u64, Ordering::Relaxed);
        }
    } else {
        while !ended.load(Ordering::Relaxed) {
            stream.write_all(&buffer).expect("written");
            done.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        }
    }
}

/// Exchanges of 64 bytes on `streams` connections, each kept (`keep`) or made anew for one exchange.
fn load(keep: bool, entry: SocketAddr, streams: usize, time: Duration, done: &Arc<AtomicU64>) -> Vec<u32> {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let end = Instant::now() + time;
        let tasks: Vec<_> = (0..streams)
            .map(|_| {
                let done = Arc::clone(done);
                tokio::spawn(async move {
                    let mut latencies = Vec::new();
                    let mut kept = None;
                    let mut buffer = [1; EXCHANGE_BYTES];
                    while Instant::now() < end {
                        let started = Instant::now();
                        let mut stream = match kept.take() {
                            Some(stream) => stream,
                            None => {
                                let stream = TcpStream::connect(entry).await.expect("connected");
                                stream.set_nodelay(true).expect("set");
                                stream
                            }
                        };
                        stream.write_all(&buffer).await.expect("written");
                        stream.read_exact(&mut buffer).await.expect("read");
                        done.fetch_add(1, Ordering::Relaxed);
                        latencies.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
                        kept = keep.then_some(stream);
                    }
                    latencies
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.expect("no panic"));
        }
        all
    })
}
