//! What is told of each backend, and of each of its checks.

use std::{fmt, time::UNIX_EPOCH};

use prometheus_client::{
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{Scrape, TRAFFIC, counters, gauges, service_labels};
use crate::{
    model::{Admin, name_of},
    snapshot::{BackendStatus, CheckStatus, Condition, DampingStatus},
};

impl Scrape {
    pub(super) fn backend_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in TRAFFIC {
            let samples = self
                .backends()
                .map(|(labels, b)| (labels, read(&b.traffic)));
            counters(encoder, &format!("lb_backend_{name}"), help, samples)?;
        }
        Ok(())
    }

    pub(super) fn backend_flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let recorded = self.backends().map(|(l, b)| (l, u64::from(b.recorded)));
        let name = "lb_backend_recorded_flows";
        gauges(encoder, name, "Flows recorded for it", None, recorded)?;
        let unknown = self.backends();
        let unknown = unknown.filter_map(|(l, b)| Some((l, u64::from(b.drain?.unknown_slots))));
        let name = "lb_backend_unknown_slots";
        let help = "Slots that still lead to a backend that takes no new flows";
        gauges(encoder, name, help, None, unknown)?;
        let counted = self.backends();
        let counted = counted.filter_map(|(l, b)| Some((l, u64::from(b.connections?))));
        let help = "Flows in progress, where the service counts them";
        gauges(encoder, "lb_backend_connections", help, None, counted)
    }

    /// Those of backends that were removed are not there: nobody waits for them to come up.
    pub(super) fn backend_state(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Gauge = (&'static str, &'static str, fn(&BackendStatus) -> u64);
        let states: [Gauge; 5] = [
            ("lb_backend_up", "0 while its checks fail", |b| {
                (b.condition != Condition::Down).into()
            }),
            (
                "lb_backend_reachable",
                "1 if route and neighbour are known",
                |b| b.reachable.into(),
            ),
            (
                "lb_backend_draining",
                "1 if it takes no new flows on request",
                |b| matches!(b.backend.admin, Admin::Draining | Admin::Maintenance).into(),
            ),
            ("lb_backend_weight", "Its weight", |b| {
                b.backend.weight.into()
            }),
            ("lb_backend_slots", "Slots of the ring that it owns", |b| {
                b.slots.into()
            }),
        ];
        for (name, help, read) in states {
            let samples = self.pool().map(|(labels, b)| (labels, read(b)));
            gauges(encoder, name, help, None, samples)?;
        }
        let effective = self.pool().map(|(labels, b)| (labels, b.effective_weight));
        let help = "Its weight as it counts now: what its agent asks for, how far it has grown, and how it fares";
        gauges(
            encoder,
            "lb_backend_effective_weight",
            help,
            None,
            effective,
        )?;
        self.adaptive(encoder)?;
        self.damping(encoder)?;
        self.passive(encoder)?;
        self.standings(encoder)?;
        let latencies = self
            .pool()
            .filter_map(|(labels, b)| Some((labels, b.latency?.as_secs_f64())));
        let help = "Duration of the last successful check";
        gauges(
            encoder,
            "lb_backend_probe_latency",
            help,
            Some(&Unit::Seconds),
            latencies,
        )
    }

    fn adaptive(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let adaptive = || {
            self.pool()
                .filter_map(|(labels, b)| Some((labels, b.adaptive?)))
        };
        let share = adaptive().map(|(l, a)| (l, f64::from(a.percent) / 100.0));
        let wanted = adaptive().map(|(l, a)| (l, f64::from(a.wanted) / 100.0));
        let unit = Some(&Unit::Ratios);
        let help = "Share of its weight that it has, where that follows how it fares";
        gauges(encoder, "lb_backend_adaptive_share", help, unit, share)?;
        let help = "Share of its weight that it should have by the last look";
        gauges(encoder, "lb_backend_adaptive_wanted", help, unit, wanted)?;
        let pools = || {
            self.pools()
                .filter_map(|s| Some((service_labels(s), s.adaptive?)))
        };
        let held = pools().map(|(labels, a)| (labels, u64::from(a.held)));
        let help = "1 while weights are held back, as too few slots would be steady";
        gauges(encoder, "lb_service_adaptive_held", help, None, held)?;
        let changes = pools().map(|(labels, a)| (labels, a.changes));
        let help = "How often weights have followed how backends fare";
        counters(encoder, "lb_service_adaptive_changes", help, changes)
    }

    fn damping(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Gauge = (&'static str, &'static str, fn(&DampingStatus) -> u64);
        let figures: [Gauge; 2] = [
            (
                "lb_backend_failures",
                "Failures that are not forgotten yet, where flaps are damped",
                |d| d.failures.into(),
            ),
            (
                "lb_backend_held",
                "1 while it is kept out though its checks pass, for having failed too often",
                |d| d.left.is_some().into(),
            ),
        ];
        for (name, help, read) in figures {
            let pools = self.pools().filter(|s| !s.service.flap_damping.is_off());
            let damped = pools.flat_map(|s| Self::backends_of(s).filter(|(_, b)| !b.leaving));
            let samples = damped.map(|(labels, b)| (labels, read(&b.damping)));
            gauges(encoder, name, help, None, samples)?;
        }
        Ok(())
    }

    fn passive(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let watched = || self.pool().filter_map(|(l, b)| Some((l, b.passive?)));
        let shown = watched().flat_map(|([service, backend], p)| {
            let signs = [
                ("accepted", p.accepted),
                ("refused", p.refused),
                ("unreachable", p.unreachable),
                ("progressed", p.progressed),
                ("missed", p.missed),
            ];
            signs.map(|(sign, count)| {
                let sign = ("sign", sign.to_owned());
                ([service.clone(), backend.clone(), sign], count)
            })
        });
        let help = "What packets of handshakes have shown, by sign";
        counters(encoder, "lb_backend_signs", help, shown)?;
        let times = watched().filter_map(|(l, p)| Some((l, p.handshake?.as_secs_f64())));
        let help = "How long watched handshakes have taken on average, from SYN to the client's next segment";
        let unit = Some(&Unit::Seconds);
        gauges(encoder, "lb_backend_handshake", help, unit, times)?;
        let ejected = watched().map(|(l, p)| (l, u64::from(p.left.is_some())));
        let help = "1 while it is kept out for what packets show";
        gauges(encoder, "lb_backend_ejected", help, None, ejected)?;
        let times = watched().map(|(l, p)| (l, u64::from(p.ejections)));
        let help = "Times that it was kept out for that, not forgotten yet";
        gauges(encoder, "lb_backend_ejections", help, None, times)
    }

    fn standings(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stood = || {
            self.pool()
                .filter_map(|(l, b)| Some((l, b.standing.as_ref()?)))
        };
        let states = stood().map(|([service, backend], standing)| {
            let state = ("state", name_of(standing.state));
            ([service, backend, state], 1_u64)
        });
        let help = "1, with the state that it is in";
        gauges(encoder, "lb_backend_state", help, None, states)?;
        let since = stood().map(|(labels, standing)| {
            let since = standing.since.duration_since(UNIX_EPOCH);
            (labels, since.unwrap_or_default().as_secs_f64())
        });
        let help = "Since when it is in that state, in Unix time";
        let name = "lb_backend_state_since";
        gauges(encoder, name, help, Some(&Unit::Seconds), since)?;
        let help = "Backends that turned and tiers that took over, since the agent started";
        encoder
            .encode_descriptor("lb_events", help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&self.0.events, None)
    }

    pub(super) fn checks(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let up = self.each_check();
        let up = up.map(|(l, c)| (l, u64::from(c.condition != Condition::Down)));
        gauges(encoder, "lb_check_up", "0 while the check fails", None, up)?;
        let probes = self.each_check().flat_map(|(labels, check)| {
            let results = [
                ("passed", check.passed),
                ("failed", check.failed),
                ("undecided", check.undecided),
            ];
            results.map(|(result, count)| {
                let [service, backend, name] = labels.clone();
                (
                    [service, backend, name, ("result", result.to_owned())],
                    count,
                )
            })
        });
        let help = "Probes by what they found; undecided ones say nothing about the backend";
        counters(encoder, "lb_check_probes", help, probes)?;
        let latencies = self
            .each_check()
            .filter_map(|(labels, check)| Some((labels, check.latency?.as_secs_f64())));
        let help = "Duration of the check's last probe, where it succeeded";
        let unit = Some(&Unit::Seconds);
        gauges(encoder, "lb_check_latency", help, unit, latencies)?;
        let patience = self
            .each_check()
            .filter_map(|(labels, check)| Some((labels, check.patience?.as_secs_f64())));
        let help = "How long the next heartbeat is waited for";
        gauges(encoder, "lb_check_patience", help, unit, patience)
    }

    fn each_check(&self) -> impl Iterator<Item = ([(&'static str, String); 3], &CheckStatus)> {
        self.pool().flat_map(|([service, backend], status)| {
            status.checks.iter().map(move |check| {
                let name = ("check", check.name.clone());
                ([service.clone(), backend.clone(), name], check)
            })
        })
    }
}
