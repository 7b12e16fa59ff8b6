//! Which signs of failure a backend is kept out for, and for how long. Names and bounds alone; who is kept out is
//! decided in [`crate::agent::outlier`].

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Mode, ModelError, Protocol, Service, check::invalid};
use crate::duration;

/// What the packets of handshakes have to show of a backend before it is kept out, and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Passive {
    /// Whether they are looked at.
    pub on: bool,
    /// Connections in a row that it refuses; 0: however many.
    pub refusals: u32,
    /// Percent of its handshakes that fail, where those of others do not; 0: however many.
    pub failing: u8,
    /// Of how many handshakes at least.
    pub volume: u32,
    /// Of which time.
    pub window: Duration,
    /// How long a client may take to go on with a handshake.
    pub handshake: Duration,
    /// Percent of a pool's backends that may be kept out at a time; one always may.
    pub max_ejected: u8,
    /// How long: so much for each time that is not forgotten.
    pub ejection: Duration,
    /// The longest.
    pub longest: Duration,
}

impl Passive {
    /// Whether nobody is kept out for what packets show.
    pub fn is_off(&self) -> bool {
        !self.on
    }

    /// Looked at, with every setting at its default.
    pub const ON: Self = Self {
        on: true,
        refusals: 3,
        failing: 50,
        volume: 5,
        window: Duration::from_secs(10),
        handshake: Duration::from_secs(1),
        max_ejected: 50,
        ejection: Duration::from_secs(10),
        longest: Duration::from_secs(5 * 60),
    };

    /// Not looked at.
    pub const OFF: Self = Self {
        on: false,
        ..Self::ON
    };
}

impl Default for Passive {
    fn default() -> Self {
        Self::OFF
    }
}

impl fmt::Display for Passive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off() {
            return f.write_str("off");
        }
        let (is, usual) = (self, Self::ON);
        let time = humantime::format_duration;
        let settings = [
            (is.refusals != usual.refusals).then(|| format!("refusals={}", is.refusals)),
            (is.failing != usual.failing).then(|| format!("failing={}%", is.failing)),
            (is.volume != usual.volume).then(|| format!("volume={}", is.volume)),
            (is.window != usual.window).then(|| format!("window={}", time(is.window))),
            (is.handshake != usual.handshake).then(|| format!("handshake={}", time(is.handshake))),
            (is.max_ejected != usual.max_ejected)
                .then(|| format!("max_ejected={}%", is.max_ejected)),
            (is.ejection != usual.ejection).then(|| format!("ejection={}", time(is.ejection))),
            (is.longest != usual.longest).then(|| format!("longest={}", time(is.longest))),
        ];
        let given: Vec<String> = settings.into_iter().flatten().collect();
        match &given[..] {
            [] => f.write_str("on"),
            given => f.write_str(&given.join(",")),
        }
    }
}

impl FromStr for Passive {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::default()),
            "on" => return Ok(Self::ON),
            _ => {}
        }
        let mut passive = Self::ON;
        let mut longest = None;
        for part in text.split(',') {
            let set = part
                .trim()
                .split_once('=')
                .and_then(|(name, value)| passive.set(name, value, &mut longest));
            if set.is_none() {
                let shown = part.trim().escape_debug();
                return Err(format!(
                    "`{shown}` says nothing of passive detection: \"on\", \"off\", or settings between commas: refusals=3, failing=50%, volume=5, window=10s, handshake=1s, max_ejected=50%, ejection=10s, longest=5m"
                ));
            }
        }
        passive.longest = longest.unwrap_or(Self::ON.longest.max(passive.ejection));
        Ok(passive)
    }
}

impl Passive {
    /// Takes one setting in; nothing where there is none of that name, or it cannot be read.
    fn set(&mut self, name: &str, value: &str, longest: &mut Option<Duration>) -> Option<()> {
        let percent = || -> Option<u8> { value.strip_suffix('%').unwrap_or(value).parse().ok() };
        let time = || duration::parse(value).ok();
        match name {
            "refusals" => self.refusals = value.parse().ok()?,
            "failing" => self.failing = percent()?,
            "volume" => self.volume = value.parse().ok()?,
            "window" => self.window = time()?,
            "handshake" => self.handshake = time()?,
            "max_ejected" => self.max_ejected = percent()?,
            "ejection" => self.ejection = time()?,
            "longest" => *longest = Some(time()?),
            _ => return None,
        }
        Some(())
    }
}

impl Serialize for Passive {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Passive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A time and its bounds.
type Bounds = (&'static str, Duration, Duration, Duration);

pub(super) fn check_passive(service: &Service) -> Result<(), ModelError> {
    let passive = service.passive;
    if passive.is_off() {
        return Ok(());
    }
    let refuse = |problem: String| invalid(service.id, "passive", problem);
    if service.id.protocol != Protocol::Tcp {
        let protocol = service.id.protocol.to_string().to_uppercase();
        return refuse(format!(
            "goes by the handshakes of TCP, which {protocol} has none of: leave it out"
        ));
    }
    if matches!(service.mode, Mode::Nat | Mode::FullNat) && service.id.has_several_ports() {
        return refuse(
            "goes by refused connections in modes \"nat\" and \"full-nat\", and with several ports whoever asks for closed ones would have backends kept out: leave it out, name the ports, or use a mode in which backends answer directly, such as \"ipip\"".into(),
        );
    }
    if passive.refusals == 0 && passive.failing == 0 {
        return refuse(
            "with refusals=0 and failing=0 there is nothing to keep a backend out for: use \"off\""
                .into(),
        );
    }
    for (name, percent) in [
        ("failing", passive.failing),
        ("max_ejected", passive.max_ejected),
    ] {
        if percent > 100 {
            return refuse(format!("{name} is {percent}%: 0% to 100%"));
        }
    }
    if !(1..=1_000_000).contains(&passive.volume) {
        return refuse(format!("volume is {}: 1 to 1000000", passive.volume));
    }
    let seconds = Duration::from_secs;
    let times: [Bounds; 4] = [
        ("window", passive.window, seconds(1), seconds(600)),
        (
            "handshake",
            passive.handshake,
            Duration::from_millis(50),
            seconds(5),
        ),
        ("ejection", passive.ejection, seconds(1), seconds(86_400)),
        (
            "longest",
            passive.longest,
            passive.ejection,
            seconds(7 * 86_400),
        ),
    ];
    for (name, time, least, most) in times {
        if time < least || time > most {
            let [time, least, most] = [time, least, most].map(humantime::format_duration);
            return refuse(format!("{name} is {time}: {least} to {most}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passive_is_refused_where_it_would_do_nothing_or_what_clients_want() {
        let refused = |id: &str, mode| {
            let service = Service {
                passive: Passive::ON,
                ..Service::new(id.parse().unwrap(), mode)
            };
            let error = check_passive(&service).err();
            error.map(|error| error.to_string()).unwrap_or_default()
        };
        let (one, every) = ("10.0.0.1:80/tcp", "10.0.0.1:*/tcp");
        let udp = refused("10.0.0.1:80/udp", Mode::FullNat);
        assert!(udp.contains("leave it out"), "{udp}");
        for mode in [Mode::Nat, Mode::FullNat] {
            let ports = refused(every, mode);
            assert!(ports.contains("name the ports"), "{ports}");
            assert_eq!(refused(one, mode), "");
        }
        for (id, mode) in [(one, Mode::Ipip), (every, Mode::L2)] {
            assert_eq!(refused(id, mode), "", "{id}");
        }
    }

    #[test]
    fn passive_settings_are_read_as_they_are_written() {
        let seconds = Duration::from_secs;
        for (text, read, written) in [
            ("off", Passive::default(), "off"),
            ("on", Passive::ON, "on"),
            ("refusals=3, window=10s", Passive::ON, "on"),
            (
                "refusals=1,max_ejected=30",
                Passive {
                    refusals: 1,
                    max_ejected: 30,
                    ..Passive::ON
                },
                "refusals=1,max_ejected=30%",
            ),
            (
                "ejection=10m",
                Passive {
                    ejection: seconds(600),
                    longest: seconds(600),
                    ..Passive::ON
                },
                "ejection=10m,longest=10m",
            ),
        ] {
            assert_eq!(text.parse(), Ok(read), "{text}");
            assert_eq!(read.to_string(), written);
            assert_eq!(written.parse(), Ok(read));
        }
        for text in ["", "yes", "refusals", "refusals=few", "speed=3", "window=3"] {
            let refused = text.parse::<Passive>().unwrap_err();
            assert!(refused.contains("max_ejected=50%"), "{refused}");
        }
    }
}
