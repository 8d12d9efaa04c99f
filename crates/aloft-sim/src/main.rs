use std::time::Instant;
fn main() {
    let mut args = std::env::args().skip(1);
    let seed: u64 = args.next().map_or(0, |a| a.parse().unwrap());
    let n: u64 = args.next().map_or(1, |a| a.parse().unwrap());
    let jobs: usize = args.next().map_or(1, |a| a.parse().unwrap());
    let bin = args.next().map(std::path::PathBuf::from);
    let start = Instant::now();
    let r = aloft_sim::search::many(bin.as_deref(), seed, n, jobs, |done| {
        if done % if bin.is_some() { 10 } else { 200 } == 0 {
            eprintln!("{done} {:?}", start.elapsed() / done as u32)
        }
    });
    if let Err(f) = r {
        eprintln!("{f}");
        std::process::exit(1)
    }
}
