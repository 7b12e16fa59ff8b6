//! `--wait` of `lbctl backend drain` and `maintenance`: how far a backend is from having no flow.
//!
//! Progress goes to the standard error, so that the answer stays as it is without it.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use lb_userspace::{
    api::{
        client::Client,
        dto::{Backend, Drain},
    },
    model::Admin,
};
use tokio::time::timeout;

use crate::{
    args::{Target, Wait},
    failure::Failure,
    patience,
};

/// Sweeps, after which there is news, are half a second apart at least.
const LOOK: Duration = Duration::from_millis(500);

/// Waits, if that is wanted, until `target` has no flow any more.
pub async fn wait(client: &Client, target: &Target, wait: Wait) -> Result<(), Failure> {
    if !wait.wait {
        return Ok(());
    }
    let Target { service, address } = *target;
    let mut told = String::new();
    let ended = until_ended(client, target, &mut told);
    let Some(longest) = wait.timeout else {
        return ended.await;
    };
    match timeout(longest, ended).await {
        Ok(ended) => ended,
        Err(_) => {
            let longest = humantime::format_duration(longest);
            Err(Failure::Deadline(format!(
                "backend {address} of {service} may still have flows after {longest} ({told}): it goes on draining"
            )))
        }
    }
}

async fn until_ended(client: &Client, target: &Target, told: &mut String) -> Result<(), Failure> {
    let Target { service, address } = *target;
    let mut pause = Duration::ZERO;
    loop {
        let backends = patience::until_answered(pause, || client.backends(service)).await?;
        pause = LOOK;
        let Some(backend) = backends.into_iter().find(|b| b.address == address) else {
            // Removed meanwhile, and left.
            return Ok(());
        };
        if !backend.leaving && !matches!(backend.state, Admin::Draining | Admin::Maintenance) {
            let problem = format!("backend {address} of {service} was taken out of its drain");
            return Err(Failure::Deadline(problem));
        }
        if backend.drain.is_some_and(|drain| drain.ended) {
            tell("no flow is left");
            return Ok(());
        }
        let now = describe(&backend);
        if now != *told {
            tell(&now);
            *told = now;
        }
    }
}

/// What is known of what it has, and what is not.
fn describe(backend: &Backend) -> String {
    let Some(drain) = backend.drain else {
        return "it still takes new flows".to_owned();
    };
    let Drain {
        observed,
        unknown_slots,
        by_id,
        reported,
        ..
    } = drain;
    let mut text = format!("{observed} flows observed");
    if reported {
        return text
            + "; the backend says that it has none, and those that have ended do not count";
    }
    if unknown_slots > 0 {
        text += &format!("; unknown: idle ones in {unknown_slots} slots");
    }
    if by_id {
        text += "; unknown: those of connection ids";
    }
    if unknown_slots == 0 && !by_id && observed == 0 {
        text += "; the next sweep of the flow tables will tell";
    }
    text
}

fn tell(line: &str) {
    // Nobody may be left to read it, which is no reason to stop.
    let _ = writeln!(io::stderr(), "{line}");
}
