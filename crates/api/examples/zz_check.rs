//! tmp
fn main() {
    let paths: Vec<std::path::PathBuf> = std::env::args().skip(1).map(Into::into).collect();
    let t = std::time::Instant::now();
    let l = ambit_api::load(&paths);
    let e = t.elapsed();
    for d in l.diagnostics.iter().take(3000) { println!("{d} => {}", d.help.as_deref().unwrap_or("")); }
    eprintln!("{} objects, {} diagnostics, {e:?}", l.objects.len(), l.diagnostics.len());
    if paths.len() == 2 { print!("{}", ambit_api::render(&l.diagnostics[..l.diagnostics.len().min(3)], true)); }
}
