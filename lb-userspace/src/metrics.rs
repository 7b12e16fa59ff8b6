//! Prometheus metrics: a snapshot as text, and the server that Prometheus asks. It counts nothing
//! itself.

mod backends;
mod subsets;

use std::fmt;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};
use tokio::net::TcpListener;

use crate::{
    agent::Handle,
    capacity::{self, Capacity, Resource},
    http,
    snapshot::{BackendStatus, FlowStatus, RecordUses, ServiceStatus, Snapshot, TableUse, Traffic},
};

/// The media type of what [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The snapshot in the OpenMetrics text format, which Prometheus reads.
pub fn render(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(snapshot.clone())));
    let mut page = String::new();
    // Writing to a string cannot fail, and the encoder has no errors of its own; a page cut short
    // lacks its `# EOF`, which Prometheus refuses.
    let _ = text::encode(&mut page, &registry);
    page
}

/// Answers `GET /metrics` and `GET /healthz` until `shutdown`.
///
/// # Errors
/// The socket failed.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(healthz))
        .with_state(handle);
    http::serve_others(listener, router, shutdown).await
}

async fn page(State(handle): State<Handle>) -> Response {
    match handle.snapshot().await {
        Ok(snapshot) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&snapshot)).into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// Whether the agent's loop answers.
async fn healthz(State(handle): State<Handle>) -> Response {
    match handle.snapshot().await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// One snapshot, as the registry asks for it.
#[derive(Debug)]
struct Scrape(Snapshot);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.agent(&mut encoder)?;
        self.services(&mut encoder)?;
        self.flow_tables(&mut encoder)?;
        self.flows(&mut encoder)?;
        self.record_uses(&mut encoder)?;
        self.slots(&mut encoder)?;
        self.tiers(&mut encoder)?;
        self.panics(&mut encoder)?;
        self.subsets(&mut encoder)?;
        self.capacity(&mut encoder)?;
        self.backend_traffic(&mut encoder)?;
        self.backend_flows(&mut encoder)?;
        self.backend_state(&mut encoder)?;
        self.checks(&mut encoder)
    }
}

/// How the three counters of a [`Traffic`] are called, explained and read.
type TrafficCounter = (&'static str, &'static str, fn(&Traffic) -> u64);

const TRAFFIC: [TrafficCounter; 3] = [
    ("packets", "Packets forwarded", |t| t.packets),
    ("bytes", "Bytes forwarded, as they arrived", |t| t.bytes),
    ("flows", "New flows: TCP SYNs and QUIC Initials", |t| {
        t.flows
    }),
];

impl Scrape {
    fn agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor("lb_build", "Version of the agent", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let help = "Generation of the tables in force";
        encoder
            .encode_descriptor("lb_generation", help, None, MetricType::Gauge)?
            .encode_gauge(&self.0.generation)?;
        let drops = self
            .0
            .drops
            .iter()
            .map(|(reason, count)| ([("reason", *reason)], *count));
        let help = "Packets to VIPs that were not forwarded";
        counters(encoder, "lb_drops", help, drops)?;
        let answers = self.0.answers.iter();
        let answers = answers.map(|(kind, count)| ([("answer", *kind)], *count));
        let help = "Answers in the names of VIPs, and why there were none";
        counters(encoder, "lb_answers", help, answers)?;
        let fragments = self.0.fragments.iter();
        let fragments = fragments.map(|(kind, count)| ([("fragment", *kind)], *count));
        let help =
            "Fragments of datagrams to VIPs and of answers to their clients, by what they came to";
        counters(encoder, "lb_fragments", help, fragments)?;
        let announced = self.0.announced.iter();
        let claims = announced.map(|a| ([("vip", a.vip.to_string())], a.conflicts));
        let help = "Frames by which others have claimed a VIP that is announced";
        counters(encoder, "lb_vip_conflicts", help, claims)
    }

    fn services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, read) in TRAFFIC {
            let services = self.0.services.iter();
            let samples = services.map(|s| (service_labels(s), read(&s.traffic)));
            counters(encoder, &format!("lb_service_{name}"), help, samples)?;
        }
        let services = self.0.services.iter();
        let sizes = services.map(|s| (service_labels(s), u64::from(s.ring_size)));
        gauges(
            encoder,
            "lb_service_slots",
            "Slots of the ring",
            None,
            sizes,
        )
    }

    fn flow_tables(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Gauge = (&'static str, &'static str, fn(&TableUse) -> u64);
        let figures: [Gauge; 2] = [
            ("lb_flow_entries", "Records in the flow table", |t| {
                t.entries.into()
            }),
            (
                "lb_flow_capacity",
                "Records that the flow table has room for",
                |t| t.capacity.into(),
            ),
        ];
        let tables = [
            ("established", &self.0.established),
            ("half_open", &self.0.half_open),
            ("sessions", &self.0.sessions),
        ];
        for (name, help, read) in figures {
            let samples = tables.map(|(table, figures)| ([("table", table)], read(figures)));
            gauges(encoder, name, help, None, samples)?;
        }
        self.address_pools(encoder)
    }

    fn address_pools(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let pools = || {
            let pools = self.0.address_pools.iter();
            pools.map(|pool| ([("pool", pool.name.clone())], pool))
        };
        let ports = pools().map(|(labels, pool)| {
            let (first, last) = pool.ports;
            let each = u64::from(last - first) + 1;
            (labels, each * pool.addresses as u64)
        });
        let help = "Ports of an address pool, which each backend has anew";
        gauges(encoder, "lb_pool_ports", help, None, ports)?;
        let used = pools().map(|(labels, pool)| (labels, u64::from(pool.sessions)));
        let help = "Sessions that have a port of an address pool";
        gauges(encoder, "lb_pool_sessions", help, None, used)
    }

    fn flows(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Counter = (&'static str, &'static str, fn(&FlowStatus) -> u64);
        let figures: [Counter; 14] = [
            (
                "lb_flow_lookups",
                "Packets that looked their flow up",
                |f| f.lookups,
            ),
            ("lb_flow_recorded", "Flows recorded", |f| f.recorded),
            (
                "lb_flow_overflows",
                "Choices that could not be recorded, since the table was full",
                |f| f.overflows,
            ),
            (
                "lb_flow_promotion_overflows",
                "Packets of flows that found no room among the established ones and stayed half-open",
                |f| f.promotion_overflows,
            ),
            (
                "lb_flow_named",
                "Packets of QUIC services whose connection id named their backend",
                |f| f.named,
            ),
            (
                "lb_client_overflows",
                "Clients that could not be remembered, since the table was full",
                |f| f.client_overflows,
            ),
            (
                "lb_access_denied",
                "Packets dropped since the access list denies their source",
                |f| f.denied,
            ),
            (
                "lb_source_limited",
                "Packets that would have begun a flow, of more than their source may begin",
                |f| f.source_limited,
            ),
            (
                "lb_service_limited",
                "Packets that would have begun a flow, of more than all may begin",
                |f| f.service_limited,
            ),
            (
                "lb_ports_exhausted",
                "Flows that found no free port of their address pool, or no room for their session",
                |f| f.ports_exhausted,
            ),
            (
                "lb_client_address_untold",
                "Packets that were to tell their client's address, and had no room for it",
                |f| f.untold,
            ),
            ("lb_syn_cookies_sent", "SYNs answered by a cookie", |f| {
                f.cookies_sent
            }),
            (
                "lb_syn_cookies_valid",
                "Packets that acknowledged a SYN cookie, and began a session",
                |f| f.cookies_valid,
            ),
            (
                "lb_syn_cookies_invalid",
                "Packets of no connection that is known that acknowledged no SYN cookie",
                |f| f.cookies_invalid,
            ),
        ];
        for (name, help, read) in figures {
            let services = self.0.services.iter();
            let samples = services.map(|s| (service_labels(s), read(&s.flows)));
            counters(encoder, name, help, samples)?;
        }
        let services = self.0.services.iter();
        let clients = services.map(|s| (service_labels(s), u64::from(s.flows.clients)));
        let help = "Clients remembered for persistence";
        gauges(encoder, "lb_clients", help, None, clients)?;
        let services = self.0.services.iter();
        let sessions = services.map(|s| (service_labels(s), u64::from(s.flows.sessions)));
        let help = "Sessions of mode full-nat";
        gauges(encoder, "lb_sessions", help, None, sessions)
    }

    fn record_uses(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let samples = self.0.services.iter().flat_map(|service| {
            let [id] = service_labels(service);
            let RecordUses {
                ended,
                moving,
                away,
                home,
            } = service.flows.uses;
            let uses = [
                ("ended", ended),
                ("moving", moving),
                ("away", away),
                ("home", home),
            ];
            uses.map(|(name, count)| ([id.clone(), ("use", name.to_owned())], u64::from(count)))
        });
        let help = "Live records by what they are for: the client has ended the flow, its slot moves, \
                    its backend is not the slot's owner, or is";
        gauges(encoder, "lb_flow_records", help, None, samples)
    }

    fn slots(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let phased = |service: &ServiceStatus, figures: [u64; 3]| {
            let [id] = service_labels(service);
            let phases = ["steady", "moving", "settling"].map(|phase| ("phase", phase.to_owned()));
            let labels = phases.map(|phase| [id.clone(), phase]);
            labels.into_iter().zip(figures)
        };
        let services = self.0.services.iter();
        let slots = services.flat_map(|s| {
            let FlowStatus {
                steady,
                moving,
                settling,
                ..
            } = s.flows;
            phased(s, [steady, moving, settling].map(u64::from))
        });
        gauges(encoder, "lb_slots", "Slots in each phase", None, slots)?;
        let services = self.0.services.iter();
        let passed = services.flat_map(|s| {
            let passed = s.flows.passed;
            phased(s, [passed.steady, passed.moving, passed.settling])
        });
        let help = "Slots that have entered each phase since the agent started";
        counters(encoder, "lb_slots_passed", help, passed)
    }

    fn capacity(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let known: Vec<_> = self
            .pools()
            .filter_map(|service| Some((service_labels(service), capacity::of(service)?)))
            .collect();
        type Share = (&'static str, &'static str, fn(&Capacity) -> Option<u64>);
        let figures: [Share; 2] = [
            (
                "lb_service_utilisation",
                "What the backends that take new flows have in use of what they can carry, by what is scarcest",
                Capacity::utilisation,
            ),
            (
                "lb_service_imbalance",
                "The most loaded backend for its weight over the mean",
                Capacity::imbalance,
            ),
        ];
        for (name, help, read) in figures {
            let each = known.iter();
            let samples = each.filter_map(|(l, c)| Some((l.clone(), read(c)? as f64 / 1_000.0)));
            gauges(encoder, name, help, Some(&Unit::Ratios), samples)?;
        }
        let each = known.into_iter();
        let headroom = each.filter_map(|(l, c)| Some((l, c.headroom()? as u64)));
        let name = "lb_service_headroom_backends";
        let help = "Backends that can fail before the others and standbys cannot carry the load";
        gauges(encoder, name, help, None, headroom)?;
        let uses = self.pool().flat_map(|([service, backend], status)| {
            let each = Resource::ALL.into_iter().filter_map(|by| {
                let used = capacity::utilisation(by, status)?;
                Some((by, used as f64 / 1_000.0))
            });
            each.map(move |(by, used)| {
                let resource = ("resource", by.name().to_owned());
                ([service.clone(), backend.clone(), resource], used)
            })
        });
        let help = "What a backend has in use of what it says that it can carry";
        gauges(
            encoder,
            "lb_backend_utilisation",
            help,
            Some(&Unit::Ratios),
            uses,
        )
    }

    fn tiers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let tiers = || {
            let pools = self.pools();
            pools.flat_map(|service| {
                service.tiers.iter().map(move |tier| {
                    let [id] = service_labels(service);
                    ([id, ("tier", tier.number.to_string())], tier)
                })
            })
        };
        let shares = tiers().map(|(labels, tier)| (labels, f64::from(tier.share) / 1_000.0));
        let help = "Share of new flows that a tier gets";
        gauges(encoder, "lb_tier_share", help, Some(&Unit::Ratios), shares)?;
        let healthy = tiers().map(|(labels, tier)| (labels, tier.healthy as u64));
        let help = "Backends of a tier that can take new flows";
        gauges(encoder, "lb_tier_healthy_backends", help, None, healthy)
    }

    fn panics(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let panics = self
            .pools()
            .filter(|service| service.service.panic_below > 0);
        let panics = panics.map(|s| (service_labels(s), u64::from(s.panic.is_some())));
        let help = "1 while so few backends are healthy that the others are used as well";
        gauges(encoder, "lb_service_panic", help, None, panics)?;
        let pools = self.pools().filter(|s| s.service.panic_below > 0);
        let used = pools.flat_map(|s| Self::backends_of(s).filter(|(_, b)| !b.leaving));
        let used = used.map(|(labels, b)| (labels, u64::from(b.used_in_panic)));
        let help = "1 while it takes new flows although it is down, as its pool is in panic";
        gauges(encoder, "lb_backend_used_in_panic", help, None, used)
    }

    fn pool(&self) -> impl Iterator<Item = ([(&'static str, String); 2], &BackendStatus)> {
        self.backends().filter(|(_, backend)| !backend.leaving)
    }

    /// A group's backends once, with its first service: else sums would count them twice.
    fn pools(&self) -> impl Iterator<Item = &ServiceStatus> {
        self.0.services.iter().filter(|s| s.lead == s.service.id)
    }

    fn backends(&self) -> impl Iterator<Item = ([(&'static str, String); 2], &BackendStatus)> {
        self.pools().flat_map(Self::backends_of)
    }

    fn backends_of(
        service: &ServiceStatus,
    ) -> impl Iterator<Item = ([(&'static str, String); 2], &BackendStatus)> {
        service.backends.iter().map(|backend| {
            let [id] = service_labels(service);
            (
                [id, ("backend", backend.backend.address.to_string())],
                backend,
            )
        })
    }
}

fn service_labels(service: &ServiceStatus) -> [(&'static str, String); 1] {
    [("service", service.service.id.to_string())]
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        let mut sample = metric.encode_family(&labels)?;
        sample.encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: impl IntoIterator<Item = (L, V)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, value) in samples {
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}
