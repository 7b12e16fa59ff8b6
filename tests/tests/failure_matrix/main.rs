//! What fails, and what of it clients notice: nginx, PostgreSQL and Redis behind the balancer, under load,
//! are broken in every way of [`fault::Fault`]. For each: how long until it is found, until the last new
//! connection that met it, what failed meanwhile, and that no connection of another backend breaks.
//!
//! `LB_TEST_SECONDS` says for how long, and that nothing else runs meanwhile; one round of all, beside other
//! tests, where it is not set. The table that it prints is that of docs/failures.md.

mod fault;
mod figures;
mod stand;
mod trial;

use std::{env, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    servers,
    skip::{skip, with_root},
    topology::Turn,
};
use tokio::time::Instant;

use crate::{
    fault::{CASES, Case},
    figures::Figures,
    stand::Stand,
};

#[test]
fn every_failure_is_found_and_breaks_no_connection_of_a_backend_that_lives() -> Result<()> {
    const NAME: &str = "every_failure_is_found_and_breaks_no_connection_of_a_backend_that_lives";
    with_root(NAME, || {
        if let Some(missing) = servers::missing() {
            skip(NAME, &format!("needs {missing}"));
            return Ok(());
        }
        let (lasts, turn) = match duration()? {
            None => (Duration::ZERO, Turn::Shared),
            // For its figures.
            Some(duration) => (duration, Turn::Exclusive),
        };
        let until = Instant::now() + lasts;
        let mut standing: Option<Stand> = None;
        let mut figures = Figures::default();
        let mut wrong = Vec::new();
        loop {
            for case in CASES.iter().filter(|case| is_wanted(case)) {
                // The one before has to be gone: with a turn to itself, it lets no other stand beside it.
                let mut stand = match standing.take().filter(|stand| stand.mode == case.mode) {
                    Some(stand) => stand,
                    None => Stand::new(case.mode, turn)?,
                };
                match trial::run(&mut stand, case, &mut figures).context(case.name) {
                    Ok(()) => standing = Some(stand),
                    // What is left of it would be the next one's.
                    Err(error) => {
                        eprintln!("{error:#}");
                        wrong.push(format!("{error:#}"));
                    }
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        println!("{figures}");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    })
}

/// How long to go on, where somebody says so.
fn duration() -> Result<Option<Duration>> {
    const VARIABLE: &str = "LB_TEST_SECONDS";
    let Ok(seconds) = env::var(VARIABLE) else {
        return Ok(None);
    };
    let seconds = seconds
        .parse()
        .with_context(|| format!("{VARIABLE}={seconds} is not a number of seconds"))?;
    Ok(Some(Duration::from_secs(seconds)))
}

/// All, or those whose name has what `LB_FAILURE` says.
fn is_wanted(case: &Case) -> bool {
    env::var("LB_FAILURE").map_or(true, |part| case.name.contains(&part))
}
