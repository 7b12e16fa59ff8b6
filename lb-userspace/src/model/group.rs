//! Groups: services that share one pool. What they share must be equal, and this says what is not.

use std::{fmt::Debug, net::SocketAddr};

use super::{Backend, Mode, Service, name_of};

/// Reads a group's name.
///
/// # Errors
/// What a name looks like.
pub fn parse_name(text: &str) -> Result<String, String> {
    parse_name_of("a group", text)
}

/// Reads the name of what is named as groups are, such as "a list".
///
/// # Errors
/// What a name looks like.
pub(crate) fn parse_name_of(what: &str, text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        return Ok(text.to_owned());
    }
    let shown = text.escape_debug();
    Err(format!(
        "`{shown}` is not {what}'s name: use 1 to 64 of a-z, A-Z, 0-9, -, _ and ."
    ))
}

/// A setting in which two services of a group differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Difference {
    /// As the configuration names it.
    pub field: &'static str,
    /// What it is here and there.
    pub what: String,
}

impl Service {
    /// Whether a packet has the VIP's port at the backend in every mode, whose own is only probed: in a
    /// group, and where the service has several ports.
    pub fn keeps_port(&self) -> bool {
        self.group.is_some() || self.id.has_several_ports()
    }

    /// Where a backend serves it: once for each port; port 0 stands for every one.
    pub fn served_at(&self, backend: SocketAddr) -> impl Iterator<Item = SocketAddr> + use<> {
        let ports = match self.id.has_every_port() {
            true => 0..=0,
            false if self.keeps_port() => self.id.ports(),
            false => backend.port()..=backend.port(),
        };
        ports.map(move |port| SocketAddr::new(backend.ip(), port))
    }

    /// Where packets of its flows arrive at a backend, in whichever mode; port 0 stands for several.
    pub fn arrives_at(&self, backend: SocketAddr) -> SocketAddr {
        let translates = matches!(self.mode, Mode::Nat | Mode::FullNat) && !self.keeps_port();
        let port = match (self.id.has_several_ports(), translates) {
            (true, _) => 0,
            (false, true) => backend.port(),
            (false, false) => self.id.vip.port(),
        };
        SocketAddr::new(backend.ip(), port)
    }

    /// The first thing that its group would have to share with `other`, and does not.
    pub(super) fn difference(&self, other: &Self) -> Option<Difference> {
        let time = |time| humantime::format_duration(time).to_string();
        differ("mode", name_of(self.mode), name_of(other.mode))
            .or_else(|| differ("ring_size", shown(self.ring_size), shown(other.ring_size)))
            .or_else(|| {
                let scheduler = |service: &Self| name_of(service.scheduler);
                differ("scheduler", scheduler(self), scheduler(other))
            })
            .or_else(|| {
                let flow_state = |service: &Self| name_of(service.flow_state);
                differ("flow_state", flow_state(self), flow_state(other))
            })
            .or_else(|| differ("on_down", name_of(self.on_down()), name_of(other.on_down())))
            .or_else(|| {
                let moving = |service: &Self| time(service.moving_time());
                differ("moving_time", moving(self), moving(other))
            })
            .or_else(|| differ("dead_after", time(self.dead_after), time(other.dead_after)))
            .or_else(|| {
                let refusal = |service: &Self| name_of(service.no_backend);
                differ("no_backend", refusal(self), refusal(other))
            })
            .or_else(|| {
                let (here, there) = (self.mss_clamp, other.mss_clamp);
                differ("mss_clamp", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.second_hop, other.second_hop);
                differ("second_hop", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.address_pool.as_ref(), other.address_pool.as_ref());
                differ("address_pool", shown(here), shown(there))
            })
            .or_else(|| {
                let (here, there) = (self.client_address, other.client_address);
                differ("client_address", name_of(here), name_of(there))
            })
            .or_else(|| {
                let (here, there) = (self.syn_proxy, other.syn_proxy);
                differ("syn_proxy", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.access_list.as_ref(), other.access_list.as_ref());
                differ("access_list", shown(here), shown(there))
            })
            .or_else(|| {
                let (here, there) = (self.flow_limit, other.flow_limit);
                differ("flow_limit", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.source_limit, other.source_limit);
                differ("source_limit", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.source_prefix_v4, other.source_prefix_v4);
                differ("source_prefix_v4", shown(here), shown(there))
            })
            .or_else(|| {
                let (here, there) = (self.source_prefix_v6, other.source_prefix_v6);
                differ("source_prefix_v6", shown(here), shown(there))
            })
            .or_else(|| {
                let routes = |service: &Self| match service.source_routes.len() {
                    0 => "not set".to_owned(),
                    count => format!("{count} prefixes"),
                };
                let unequal = self.source_routes != other.source_routes;
                let what = format!("{} here and {} there", routes(self), routes(other));
                let field = "source_route";
                unequal.then_some(Difference { field, what })
            })
            .or_else(|| {
                differ(
                    "persistence",
                    time(self.persistence),
                    time(other.persistence),
                )
            })
            .or_else(|| {
                let (here, there) = (self.spill_below, other.spill_below);
                differ("spill_below", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.failback, other.failback);
                differ("failback", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.slow_start, other.slow_start);
                differ("slow_start", here.to_string(), there.to_string())
            })
            .or_else(|| differ("adaptive", shown(self.adaptive), shown(other.adaptive)))
            .or_else(|| {
                let (here, there) = (self.flap_damping, other.flap_damping);
                differ("flap_damping", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.passive, other.passive);
                differ("passive", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let (here, there) = (self.panic_below, other.panic_below);
                differ("panic_below", here.to_string(), there.to_string())
            })
            .or_else(|| {
                let tier = |service: &Self| format!("tier {} first", service.from_tier);
                differ("failover", tier(self), tier(other))
            })
            .or_else(|| differ("quic", shown(self.quic), shown(other.quic)))
            .or_else(|| self.prefix_difference(other))
            .or_else(|| {
                let unequal = self.health != other.health;
                let what = "the checks are not the same".to_owned();
                let field = "health";
                unequal.then_some(Difference { field, what })
            })
            .or_else(|| self.pool_difference(other))
    }

    /// Clients of both families can be told by all bits of their addresses alone.
    fn prefix_difference(&self, other: &Self) -> Option<Difference> {
        if self.client_bits() == other.client_bits() {
            return None;
        }
        let bits = |service: &Self| shown(service.persistence_prefix);
        let what = format!("{} here and {} there", bits(self), bits(other));
        let field = "persistence_prefix";
        Some(Difference { field, what })
    }

    fn pool_difference(&self, other: &Self) -> Option<Difference> {
        let missing = |from: &Self, of: &Backend| from.backend(of.address) != Some(of);
        let here = self.backends.iter().find(|b| missing(other, b));
        let what = match (here, other.backends.iter().find(|b| missing(self, b))) {
            (None, None) => return None,
            (Some(b), _) if other.backend(b.address).is_some() => {
                format!("{} is not the same here and there", b.address)
            }
            (Some(b), _) => format!("{} is here and not there", b.address),
            (None, Some(b)) => format!("{} is there and not here", b.address),
        };
        let field = "backend";
        Some(Difference { field, what })
    }
}

fn shown(value: Option<impl Debug>) -> String {
    value.map_or_else(|| "not set".to_owned(), |value| format!("{value:?}"))
}

fn differ(field: &'static str, here: String, there: String) -> Option<Difference> {
    let what = format!("{here} here and {there} there");
    (here != there).then_some(Difference { field, what })
}
