//! What is kept for the agent after this one ([`crate::agent::history`]): gathered from what is known, and taken up again.

use std::{net::SocketAddr, time::Duration};

use lb_common::tables::Tick;

use super::{Core, forced::Key, known::Down};
use crate::{
    agent::history::{AskedOf, DownOf, EjectionsOf, FlapsOf, ForcedOf, History, TierOf, WaitingOf},
    dataplane::Dataplane,
    model::{Admin, FlapDamping, Passive, Service, ServiceId},
    plan::ticks,
};

impl<D: Dataplane> Core<D> {
    /// What the agent after this one is to know, beside what the maps and the state tell it; times are those of
    /// the maps' clock.
    pub fn history(&self) -> History<Tick> {
        let known = &self.known;
        let failing = |key: &Key| known.down.contains_key(key) || known.damped.is_failing(*key);
        let flaps = known.damped.all().map(|(&(service, backend), flaps)| {
            let key = (service, backend);
            FlapsOf {
                service,
                backend,
                failures: flaps.failures,
                well_since: flaps.well_since,
                held_since: known.damped.held_since(key),
                failing: failing(&key),
            }
        });
        let tiers = known.tiers.held().map(|(service, tier, most, better)| {
            let backends = self.backends_of(service, tier).into_iter();
            TierOf {
                service,
                tier,
                most,
                better_since: better,
                failing: backends.filter(|&b| failing(&(service, b))).collect(),
            }
        });
        let forced = known
            .forced
            .iter()
            .map(|(&(service, backend), down)| ForcedOf {
                service,
                backend,
                since: down.since,
                dead: down.dead,
            });
        // Who is only found so has yet to be shown to fail.
        let down = known
            .down
            .iter()
            .filter(|(_, down)| !down.found || down.failing || down.new);
        let down = down.map(|(&(service, backend), down)| DownOf {
            service,
            backend,
            since: down.since,
            gone: down.gone,
            new: down.new,
        });
        let asked = known
            .asked
            .iter()
            .map(|(&(service, backend), &asked)| AskedOf {
                service,
                backend,
                asked,
            });
        let waiting = known.slow.waiting();
        let waiting = waiting.map(|(service, backend)| WaitingOf { service, backend });
        History {
            flaps: flaps.collect(),
            ejections: known.outliers.ejections().collect(),
            tiers: tiers.collect(),
            forced: forced.collect(),
            down: down.collect(),
            asked: asked.collect(),
            shares: known.adapting.all().collect(),
            waiting: waiting.collect(),
        }
    }

    fn backends_of(&self, service: ServiceId, tier: u8) -> Vec<SocketAddr> {
        let service = self.state.service(service).into_iter();
        let backends = service.flat_map(|service| &service.backends);
        let of_tier = backends.filter(|backend| backend.tier == tier);
        of_tier.map(|backend| backend.address).collect()
    }

    /// Says what the agent before this one knew, with how long ago it began: taken up with the first change, which tells
    /// whose it still is.
    pub fn recall(&mut self, history: History<Duration>) {
        let now = self.dataplane.now();
        let then = |age: Duration| -> Result<Tick, std::convert::Infallible> {
            Ok(now.wrapping_sub(ticks(age)))
        };
        let Ok(history) = history.try_map(then);
        self.former = Some(history);
    }

    /// Takes that up, of backends that are there now. It is kept until the change is in force: one that is refused has
    /// told nothing.
    pub(super) fn take_up_history(&mut self) {
        let Some(history) = self.former.clone() else {
            return;
        };
        for of in history.flaps {
            self.take_up_flaps(of);
        }
        for of in history.ejections {
            self.take_up_ejections(of);
        }
        for of in history.tiers {
            self.take_up_tier(of);
        }
        for of in history.forced {
            if let Some(key) = self.key_of(of.service, of.backend)
                && self.admin(key) == Some(Admin::Down)
            {
                let down = Down {
                    since: of.since,
                    dead: of.dead,
                    gone: false,
                    found: false,
                    new: false,
                    failing: false,
                };
                self.known.forced.insert(key, down);
            }
        }
        for of in history.down {
            self.take_up_down(&of);
        }
        for of in history.asked {
            if let Some(key) = self.key_of(of.service, of.backend)
                && self.state.service(key.0).is_some_and(Service::has_agents)
            {
                self.known.asked.insert(key, of.asked);
            }
        }
        for of in history.shares {
            if let Some(key) = self.key_of(of.service, of.backend) {
                self.known.adapting.take_up(key, of.percent);
            }
        }
        for of in history.waiting {
            if let Some(key) = self.key_of(of.service, of.backend) {
                self.known.slow.take_up(key);
            }
        }
    }

    /// Who is down in the maps has been for longer than this agent has been there; its checks have to say so again before
    /// anything comes of that.
    fn take_up_down(&mut self, of: &DownOf<Tick>) {
        let key = self.key_of(of.service, of.backend);
        if let Some(down) = key.and_then(|key| self.known.down.get_mut(&key)) {
            down.since = of.since;
            down.gone = of.gone;
            (down.new, down.failing) = (of.new, !of.new);
        }
    }

    /// A backend by the service that stands for its pool now, where it is there.
    fn key_of(&self, service: ServiceId, backend: SocketAddr) -> Option<Key> {
        let lead = self.state.lead(service);
        self.state.service(lead)?.backend(backend)?;
        Some((lead, backend))
    }

    fn take_up_flaps(&mut self, of: FlapsOf<Tick>) {
        let Some(key) = self.key_of(of.service, of.backend) else {
            return;
        };
        let service = self.state.service(key.0);
        let damping = service.map_or_else(FlapDamping::default, |s| s.flap_damping);
        self.known.damped.take_up(key, &of, damping);
    }

    fn take_up_ejections(&mut self, of: EjectionsOf<Tick>) {
        let Some(key) = self.key_of(of.service, of.backend) else {
            return;
        };
        let service = self.state.service(key.0);
        let passive = service.map_or_else(Passive::default, |s| s.passive);
        self.known.outliers.take_up(key, of, &passive);
    }

    /// Who waits with its tier takes no flows in the maps for that alone, unless it was known to fail.
    fn take_up_tier(&mut self, of: TierOf<Tick>) {
        let lead = self.state.lead(of.service);
        if of.better_since.is_some() {
            for address in self.backends_of(lead, of.tier) {
                let found = |down: &Down| down.found && !of.failing.contains(&address);
                if self.known.down.get(&(lead, address)).is_some_and(found) {
                    self.known.down.remove(&(lead, address));
                }
            }
        }
        self.known
            .tiers
            .take_up(lead, of.tier, of.most, of.better_since);
    }
}
