//! Simulated clients and networks: how often somebody is kept out by mistake, and how soon whoever is dead.

use super::*;

/// What begins and how it ends, drawn from a seed.
struct Network {
    random: u64,
}

impl Network {
    /// Xorshift64* (S. Vigna, ACM Transactions on Mathematical Software 42(4), 2016), as a share of one.
    fn draw(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How long a handshake is waited for.
const PATIENCE: u64 = ON.handshake.as_millis() as u64;
/// From one look to the next.
const LOOK: u64 = 50;

/// A pool that is judged by handshakes alone, and clients that begin some: those that go on do so at once, and those that
/// fail are known to only once they have been waited for.
struct Clients {
    network: Network,
    pool: Pool,
    due: f64,
    /// Handshakes that fail, by when that is known, and whose they are.
    failing: std::collections::VecDeque<(u64, usize)>,
    /// Whether the first backend answers nobody.
    dead: bool,
}

impl Clients {
    fn new(seed: u64, backends: usize) -> Self {
        Self {
            network: Network {
                random: seed.wrapping_mul(0x9E37_79B9) | 1,
            },
            pool: Pool::new(backends, Passive { refusals: 0, ..ON }),
            due: 0.0,
            failing: Default::default(),
            dead: false,
        }
    }

    /// So many milliseconds with so many watched handshakes a second, of which this share fails whoever gets it; how many backends were
    /// kept out, and when the first one was first.
    fn run(&mut self, millis: u64, watched: u64, failing: f64) -> (usize, Option<u64>) {
        let (mut ejected, mut took) = (0, None);
        for passed in (0..millis).step_by(LOOK as usize) {
            let (now, taking) = (self.pool.now, self.pool.taking());
            self.due += watched as f64 * LOOK as f64 / 1_000.0;
            while self.due >= 1.0 {
                self.due -= 1.0;
                let n = taking[(self.network.draw() * taking.len() as f64) as usize];
                if self.network.draw() < failing || (self.dead && n == 0) {
                    self.failing.push_back((now + PATIENCE, n));
                } else {
                    self.pool.shown[n].progressed += 1;
                }
            }
            while let Some((_, n)) = self.failing.pop_front_if(|(known, _)| *known <= now) {
                self.pool.shown[n].missed += 1;
            }
            let changes = self.pool.look(LOOK);
            let out = changes.iter().filter(|c| matches!(c, Change::Ejected(..)));
            ejected += out.count();
            if took.is_none() && self.pool.out().contains(&0) {
                took = Some(passed + LOOK);
            }
        }
        (ejected, took)
    }
}

#[test]
fn figures_of_handshakes_mistakes_are_none_in_hours_and_a_dead_backend_is_found() {
    println!(
        "backends, SYN/s, failing anyway, hours, kept out by mistake, ms until a dead one is found (median, most)"
    );
    for (backends, rate, failing, most) in [
        (4, 100, 0.001, 2_500),
        (4, 100, 0.01, 2_500),
        (4, 100, 0.05, 2_500),
        (4, 100, 0.5, 15_000),
        (4, 10_000, 0.001, 2_000),
        (4, 10_000, 0.01, 2_000),
        (4, 10_000, 0.05, 2_000),
        (4, 10_000, 0.5, 5_000),
        (2, 100, 0.01, 2_500),
        (2, 100, 0.05, 2_500),
        (2, 10_000, 0.05, 2_000),
        (2, 10_000, 0.5, 5_000),
    ] {
        let watched = rate >> (next_sampling(0, rate) - 1);
        let runs = 20;
        let (mut mistakes, mut found) = (0, Vec::new());
        for seed in 1..=runs {
            let mut clients = Clients::new(seed, backends);
            mistakes += clients.run(180_000, watched, failing).0;
            clients.dead = true;
            let (_, took) = clients.run(60_000, watched, failing);
            found.push(took.unwrap_or(u64::MAX));
        }
        found.sort_unstable();
        let (median, worst) = (found[found.len() / 2], found[found.len() - 1]);
        println!(
            "{backends}, {rate}, {}%, {}, {mistakes}, {median}, {worst}",
            failing * 100.0,
            runs as f64 * 180.0 / 3_600.0
        );
        assert_eq!(mistakes, 0, "{backends} {rate} {failing}");
        assert!(worst <= most, "{backends} {rate} {failing}: {found:?}");
    }
}

#[test]
fn figures_of_floods_that_begin_and_end_have_nobody_kept_out() {
    let runs = 50;
    for (name, backends, spares) in [
        ("four backends", 4, 0),
        ("two backends", 2, 0),
        ("a primary and a standby", 2, 1),
        ("three, of which one is a standby", 3, 1),
    ] {
        let mut mistakes = 0;
        for seed in 1..=runs {
            let mut clients = Clients::new(seed, backends);
            for n in backends - spares..backends {
                clients.pool.spares.insert(n);
            }
            for _ in 0..3 {
                mistakes += clients.run(12_000 + seed * 7, 400, 0.01).0;
                // All of them are watched until the agent knows their rate.
                mistakes += clients.run(1_000, 4_000, 0.9).0;
                mistakes += clients.run(12_000, 400, 0.9).0;
            }
        }
        println!("{name}: {} floods, {mistakes} kept out", runs * 3);
        assert_eq!(mistakes, 0, "{name}");
    }
}

/// How somebody becomes a newcomer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Comes {
    /// Of whom nothing is known: a new one, or one back from maintenance.
    New,
    /// Undrained, or of a tier that is asked again.
    Asked,
}

#[test]
fn figures_of_newcomers_in_a_flood_have_nobody_kept_out() {
    let runs = 50;
    for (backends, watched) in [(2, 250), (2, 4_000), (4, 250)] {
        for failing in [0.55, 0.7, 0.9] {
            for comes in [Comes::New, Comes::Asked] {
                let mut mistakes = 0;
                for seed in 1..=runs {
                    let mut clients = Clients::new(seed, backends);
                    mistakes += clients.run(3_000, watched, 0.01).0;
                    mistakes += clients.run(2_000 + seed * 37, watched, failing).0;
                    clients.pool.places.insert(0, DRAINED);
                    mistakes += clients.run(2_000, watched, failing).0;
                    clients.pool.places.insert(0, WELL);
                    if comes == Comes::New {
                        clients.pool.outliers.remove(&0);
                    }
                    mistakes += clients.run(13_000, watched, failing).0;
                }
                println!(
                    "{backends} backends, {watched} watched a second, {:.0}% fail, one comes ({comes:?}): {runs} times, {mistakes} kept out",
                    failing * 100.0
                );
                assert_eq!(mistakes, 0, "{backends} {watched} {failing} {comes:?}");
            }
        }
    }
}
