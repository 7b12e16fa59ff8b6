//! What the programs under test can do, found by asking them: keys that `lbd check` takes, and
//! options that `lbctl` has. Owns what a run does without, and says so.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use tempfile::NamedTempFile;

use super::plan::Kind;
use crate::binaries;

/// How long slots stay moving, and how long settling after that.
pub const MOVING_TIME: Duration = Duration::from_secs(5);

/// Where the balancer remembers flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowState {
    /// Where the ring moved.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere: changes break connections, by which the soak shows that it sees breaks.
    RingOnly,
}

/// A line of the configuration.
pub type Key = (String, String);

/// How the balancer is configured beyond what every run needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// Of every service.
    pub service: Vec<Key>,
    /// Of `[limits]`.
    pub limits: Vec<Key>,
    /// Whether slots move: the moving time is in force.
    pub moving: bool,
    /// What `lbd` does not know.
    pub without: Vec<String>,
}

impl Keys {
    /// Chooses among what `accepts` takes, given lines of a service and lines of `[limits]`.
    ///
    /// # Errors
    /// `accepts` fails, or what was asked for is not to be had.
    pub fn choose(
        flow_state: FlowState,
        flows: Option<u32>,
        mut accepts: impl FnMut(&[Key], &[Key]) -> Result<bool>,
    ) -> Result<Self> {
        let mut keys = Self::default();
        if flow_state == FlowState::RingOnly {
            keys.service.extend(ring_only(&mut accepts)?);
        } else {
            keys.moving = keys.offer(moving_time(MOVING_TIME), &mut accepts)?;
            let name = match flow_state {
                FlowState::Always => "always",
                _ => "auto",
            };
            keys.offer(key("flow_state", name), &mut accepts)?;
            keys.offer(key("on_down", "keep"), &mut accepts)?;
        }
        if let Some(flows) = flows {
            let number = |key: &str| (key.to_owned(), flows.to_string());
            keys.limits = vec![number("flows"), number("half_open")];
            if !accepts(&[], &keys.limits)? {
                bail!("lbd knows no limits of flows: leave --flows out");
            }
        }
        Ok(keys)
    }

    /// Uses a line of a service, or notes that it is not known; whether it is used.
    fn offer(
        &mut self,
        key: Key,
        accepts: &mut impl FnMut(&[Key], &[Key]) -> Result<bool>,
    ) -> Result<bool> {
        let accepted = accepts(std::slice::from_ref(&key), &[])?;
        if accepted {
            self.service.push(key);
        } else {
            self.without.push(format!("{} = {}", key.0, key.1));
        }
        Ok(accepted)
    }
}

/// What makes the ring alone decide: a state of its own, or no moving time. Nothing where `lbd`
/// knows neither, for then it remembers no flows.
fn ring_only(accepts: &mut impl FnMut(&[Key], &[Key]) -> Result<bool>) -> Result<Option<Key>> {
    for key in [key("flow_state", "ring-only"), moving_time(Duration::ZERO)] {
        if accepts(std::slice::from_ref(&key), &[])? {
            return Ok(Some(key));
        }
    }
    for key in [key("flow_state", "auto"), moving_time(MOVING_TIME)] {
        if accepts(&[key], &[])? {
            bail!(
                "lbd remembers flows, and takes neither flow_state = \"ring-only\" nor moving_time = \"0s\""
            );
        }
    }
    Ok(None)
}

fn key(name: &str, value: &str) -> Key {
    (name.to_owned(), format!("\"{value}\""))
}

fn moving_time(time: Duration) -> Key {
    key("moving_time", &format!("{}s", time.as_secs()))
}

/// Asks `lbd` whether it takes such a configuration.
///
/// # Errors
/// It is not built, or takes not even one without these lines.
pub fn accepts(service: &[Key], limits: &[Key]) -> Result<bool> {
    if check(service, limits)? {
        return Ok(true);
    }
    if !check(&[], &[])? {
        bail!("`lbd check` refuses the simplest configuration");
    }
    Ok(false)
}

fn check(service: &[Key], limits: &[Key]) -> Result<bool> {
    let file = NamedTempFile::new().context("a file for a configuration")?;
    let text = format!(
        "name = \"soak\"\ninterfaces = [\"eth0\"]\n[limits]\n{}\n[[service]]\n\
         vip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"\n{}\n\
         [[service.backend]]\naddress = \"10.2.0.11:80\"\n",
        lines(limits),
        lines(service)
    );
    std::fs::write(file.path(), text).context("writing a configuration")?;
    let mut command = Command::new(binaries::find("lbd")?);
    command.args(["check", "--config"]).arg(file.path());
    Ok(command.output().context("starting lbd")?.status.success())
}

/// As they stand in a configuration file.
pub fn lines(keys: &[Key]) -> String {
    keys.iter()
        .map(|(key, value)| format!("{key} = {value}\n"))
        .collect()
}

/// Which kinds of changes can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kinds {
    /// Those that can.
    pub can: Vec<Kind>,
    /// The others, and why not.
    pub cannot: Vec<(Kind, &'static str)>,
}

/// Asks `lbctl` which kinds of changes it can carry out.
///
/// # Errors
/// It is not built.
pub fn kinds() -> Result<Kinds> {
    let mut command = Command::new(binaries::find("lbctl")?);
    command.args(["service", "set", "--help"]);
    let help = command.output().context("starting lbctl")?;
    let resizes =
        help.status.success() && String::from_utf8_lossy(&help.stdout).contains("--ring-size");
    let (can, cannot): (Vec<Kind>, Vec<Kind>) =
        Kind::all().partition(|&kind| kind != Kind::RingSize || resizes);
    let why = "lbctl has no `service set --ring-size`";
    let cannot = cannot.into_iter().map(|kind| (kind, why)).collect();
    Ok(Kinds { can, cannot })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `lbd` that knows these lines alone.
    fn knows(known: &[&str]) -> impl FnMut(&[Key], &[Key]) -> Result<bool> {
        let known: Vec<String> = known.iter().map(ToString::to_string).collect();
        move |service, limits| {
            let line = |(key, value): &Key| format!("{key} = {value}");
            Ok(service
                .iter()
                .chain(limits)
                .map(line)
                .all(|line| known.contains(&line)))
        }
    }

    const ALL: [&str; 4] = [
        "moving_time = \"5s\"",
        "flow_state = \"auto\"",
        "flow_state = \"always\"",
        "on_down = \"keep\"",
    ];

    #[test]
    fn every_line_that_is_known_is_used() {
        let keys = Keys::choose(FlowState::Auto, None, knows(&ALL)).unwrap();
        let expected = [
            moving_time(MOVING_TIME),
            key("flow_state", "auto"),
            key("on_down", "keep"),
        ];
        assert_eq!(keys.service, expected);
        assert!(keys.moving && keys.without.is_empty());
    }

    #[test]
    fn what_is_not_known_is_left_out_and_named() {
        let keys = Keys::choose(FlowState::Always, None, knows(&ALL[..1])).unwrap();
        assert_eq!(keys.service, [moving_time(MOVING_TIME)]);
        assert_eq!(
            keys.without,
            ["flow_state = \"always\"", "on_down = \"keep\""]
        );
    }

    #[test]
    fn ring_only_prefers_its_own_state_to_no_moving_time() {
        let zero = "moving_time = \"0s\"";
        let own = "flow_state = \"ring-only\"";
        let service = |known: &[&str]| {
            Keys::choose(FlowState::RingOnly, None, knows(known)).map(|keys| keys.service)
        };
        assert_eq!(
            service(&[own, zero]).unwrap(),
            [key("flow_state", "ring-only")]
        );
        assert_eq!(service(&[zero]).unwrap(), [key("moving_time", "0s")]);
        assert_eq!(service(&[]).unwrap(), []);
        let message = service(&ALL).unwrap_err().to_string();
        assert!(message.contains("ring-only"), "{message}");
    }

    #[test]
    fn a_limit_of_flows_that_is_not_known_is_refused() {
        let known = ["flows = 9", "half_open = 9"];
        let choose = |known: &[&str]| Keys::choose(FlowState::Auto, Some(9), knows(known));
        assert_eq!(
            lines(&choose(&known).unwrap().limits),
            "flows = 9\nhalf_open = 9\n"
        );
        assert!(choose(&ALL).is_err());
    }
}
