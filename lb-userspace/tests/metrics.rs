//! Metrics: the page Prometheus reads, and the server it reads from.

#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::{
    future::pending,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use lb_userspace::{
    agent::{Handle, Request},
    api, config,
    health::reply::Asked,
    metrics,
    model::{Backend, BitRate, Service, Unserved},
    snapshot::{
        AdaptivePoolStatus, AdaptiveStatus, AddressPoolStatus, AnnouncedStatus, BackendState,
        BackendStatus, CheckStatus, Condition, DampingStatus, FlowStatus, PanicStatus, Passed,
        PassiveStatus, Rates, RecordUses, ServiceStatus, SlowStartStatus, Snapshot, Standing,
        TableUse, TierStatus, Traffic,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::timeout,
};

fn service() -> Service {
    let text = "[[service]]\nvip = \"10.0.0.1:80/tcp\"\nmode = \"nat\"\npanic_below = 40\nflap_damping = \"10s\"\n\
        backend = [{ address = \"10.1.0.2:80\" }, { address = \"10.1.0.3:80\", weight = 3, state = \"draining\", max_connections = 16, max_flow_rate = 8, max_bandwidth = 5000 }]";
    config::parse(text, "test").unwrap().services.remove(0)
}

fn flows() -> FlowStatus {
    FlowStatus {
        steady: 248,
        moving: 2,
        settling: 1,
        passed: Passed {
            moving: 30,
            settling: 28,
            steady: 27,
        },
        established: 12,
        half_open: 50,
        uses: RecordUses {
            ended: 1,
            moving: 40,
            away: 20,
            home: 3,
        },
        lookups: 900,
        recorded: 80,
        promotion_overflows: 4,
        overflows: 5,
        named: 6,
        clients: 7,
        client_overflows: 1,
        denied: 11,
        source_limited: 21,
        service_limited: 31,
        sessions: 41,
        ports_exhausted: 51,
        untold: 61,
        cookies_sent: 71,
        cookies_valid: 81,
        cookies_invalid: 91,
    }
}

fn snapshot() -> Snapshot {
    let service = service();
    let backend = |index: usize, condition, slots, latency| BackendStatus {
        backend: service.backends[index].clone(),
        condition,
        standing: Some(Standing {
            state: BackendState::Suspect,
            reason: "timed out".to_owned(),
            since: SystemTime::UNIX_EPOCH + Duration::from_millis(1_500),
        }),
        last_error: None,
        latency,
        checks: vec![CheckStatus {
            passed: 40,
            failed: 2,
            undecided: 1,
            latency,
            ..CheckStatus::new("web".to_owned(), condition)
        }],
        asked: Asked::default(),
        damping: DampingStatus {
            failures: index as u32 + 2,
            left: (index == 1).then_some(Duration::from_secs(7)),
        },
        passive: (index == 1).then_some(PassiveStatus {
            accepted: 90,
            refused: 4,
            unreachable: 3,
            progressed: 50,
            missed: 2,
            handshake: Some(Duration::from_micros(1_500)),
            ejections: 1,
            left: Some(Duration::from_secs(8)),
        }),
        slow_start: (index == 1).then_some(SlowStartStatus {
            percent: 50,
            left: Duration::from_secs(9),
        }),
        adaptive: (index == 1).then_some(AdaptiveStatus {
            percent: 30,
            wanted: 25,
            reversals: 0,
            latency: None,
            handshake: None,
        }),
        effective_weight: 1.5,
        reachable: true,
        mtu: None,
        leaving: false,
        slots,
        recorded: 6,
        used_in_panic: index == 1,
        drain: None,
        connections: (index == 1).then_some(4),
        rates: (index == 1).then_some(Rates {
            flows: 6,
            bandwidth: BitRate(1_000),
        }),
        traffic: Traffic {
            packets: 10,
            bytes: 600,
            flows: 2,
        },
    };
    let backends = vec![
        backend(
            0,
            Condition::Starting,
            251,
            Some(Duration::from_micros(1500)),
        ),
        backend(1, Condition::Down, 0, None),
        leaving(),
    ];
    let traffic = Traffic {
        packets: u64::MAX,
        bytes: 1_200,
        flows: 4,
    };
    Snapshot {
        instance: "default".to_owned(),
        generation: 7,
        interfaces: vec![],
        services: vec![ServiceStatus {
            lead: service.id,
            tiers: tiers(),
            panic: panic(),
            adaptive: Some(AdaptivePoolStatus {
                held: true,
                changes: 3,
                holds: 2,
            }),
            service,
            ring_size: 251,
            flows: flows(),
            traffic,
            backends: backends.into(),
        }],
        established: TableUse {
            entries: 12,
            capacity: 100,
        },
        half_open: TableUse {
            entries: 50,
            capacity: 50,
        },
        sessions: TableUse {
            entries: 3,
            capacity: 9,
        },
        address_pools: vec![AddressPoolStatus {
            name: "snat".to_owned(),
            addresses: 2,
            ports: (1_000, 1_099),
            sessions: 3,
        }],
        events: 9,
        drops: vec![("no_backend", 3), ("malformed", 0)],
        answers: vec![("reset", 2), ("limited", 0)],
        fragments: vec![("first", 4), ("held", 0)],
        devices: Vec::new(),
        announced: vec![AnnouncedStatus {
            vip: "10.0.0.1".parse().unwrap(),
            conflicts: 3,
        }],
        unknown_port: Unserved::Reset,
    }
}

fn panic() -> Option<PanicStatus> {
    Some(PanicStatus {
        healthy_percent: 25,
        used: 1,
    })
}

fn tiers() -> Vec<TierStatus> {
    let tier = |number, share| TierStatus {
        number,
        backends: 2,
        healthy: 1,
        share,
        waits: false,
    };
    vec![tier(0, 750), tier(1, 250)]
}

/// A backend that was removed while it had flows.
fn leaving() -> BackendStatus {
    BackendStatus {
        backend: Backend::at("10.1.0.9:80".parse().unwrap()),
        condition: Condition::Down,
        standing: None,
        last_error: None,
        latency: None,
        checks: Vec::new(),
        asked: Asked::default(),
        damping: DampingStatus::default(),
        passive: None,
        slow_start: None,
        adaptive: None,
        effective_weight: 0.0,
        reachable: true,
        mtu: None,
        leaving: true,
        slots: 0,
        recorded: 7,
        used_in_panic: false,
        drain: None,
        connections: None,
        rates: None,
        traffic: Traffic {
            packets: 11,
            bytes: 660,
            flows: 1,
        },
    }
}

#[test]
fn the_page_holds_every_figure_of_the_snapshot() {
    let page = metrics::render(&snapshot());
    let version = env!("CARGO_PKG_VERSION");
    let service = "service=\"10.0.0.1:80/tcp\"";
    let first = format!("{service},backend=\"10.1.0.2:80\"");
    let second = format!("{service},backend=\"10.1.0.3:80\"");
    let leaving = format!("{service},backend=\"10.1.0.9:80\"");
    for line in [
        format!("lb_build_info{{version=\"{version}\"}} 1"),
        "lb_generation 7".to_owned(),
        "lb_drops_total{reason=\"no_backend\"} 3".to_owned(),
        "lb_drops_total{reason=\"malformed\"} 0".to_owned(),
        "lb_answers_total{answer=\"reset\"} 2".to_owned(),
        "lb_answers_total{answer=\"limited\"} 0".to_owned(),
        "lb_fragments_total{fragment=\"first\"} 4".to_owned(),
        "lb_fragments_total{fragment=\"held\"} 0".to_owned(),
        "lb_vip_conflicts_total{vip=\"10.0.0.1\"} 3".to_owned(),
        format!("lb_service_packets_total{{{service}}} 18446744073709551615"),
        format!("lb_service_bytes_total{{{service}}} 1200"),
        format!("lb_service_flows_total{{{service}}} 4"),
        format!("lb_service_slots{{{service}}} 251"),
        format!("lb_backend_packets_total{{{first}}} 10"),
        format!("lb_backend_bytes_total{{{first}}} 600"),
        format!("lb_backend_flows_total{{{second}}} 2"),
        format!("lb_backend_up{{{first}}} 1"),
        format!("lb_backend_up{{{second}}} 0"),
        format!("lb_backend_reachable{{{second}}} 1"),
        format!("lb_backend_draining{{{first}}} 0"),
        format!("lb_backend_draining{{{second}}} 1"),
        format!("lb_backend_failures{{{second}}} 3"),
        format!("lb_backend_held{{{first}}} 0"),
        format!("lb_backend_held{{{second}}} 1"),
        format!("lb_backend_signs_total{{{second},sign=\"accepted\"}} 90"),
        format!("lb_backend_signs_total{{{second},sign=\"refused\"}} 4"),
        format!("lb_backend_signs_total{{{second},sign=\"unreachable\"}} 3"),
        format!("lb_backend_signs_total{{{second},sign=\"progressed\"}} 50"),
        format!("lb_backend_signs_total{{{second},sign=\"missed\"}} 2"),
        format!("lb_backend_handshake_seconds{{{second}}} 0.0015"),
        format!("lb_backend_ejected{{{second}}} 1"),
        format!("lb_backend_ejections{{{second}}} 1"),
        format!("lb_backend_utilisation_ratios{{{second},resource=\"connections\"}} 0.25"),
        format!("lb_backend_utilisation_ratios{{{second},resource=\"flow_rate\"}} 0.75"),
        format!("lb_backend_utilisation_ratios{{{second},resource=\"bandwidth\"}} 0.2"),
        format!("lb_backend_weight{{{second}}} 3"),
        format!("lb_backend_slots{{{first}}} 251"),
        format!("lb_check_up{{{first},check=\"web\"}} 1"),
        format!("lb_check_up{{{second},check=\"web\"}} 0"),
        format!("lb_check_probes_total{{{first},check=\"web\",result=\"passed\"}} 40"),
        format!("lb_check_probes_total{{{first},check=\"web\",result=\"failed\"}} 2"),
        format!("lb_check_probes_total{{{first},check=\"web\",result=\"undecided\"}} 1"),
        format!("lb_check_latency_seconds{{{first},check=\"web\"}} 0.0015"),
        format!("lb_backend_probe_latency_seconds{{{first}}} 0.0015"),
        "lb_flow_entries{table=\"established\"} 12".to_owned(),
        "lb_flow_capacity{table=\"established\"} 100".to_owned(),
        "lb_flow_entries{table=\"half_open\"} 50".to_owned(),
        "lb_flow_capacity{table=\"half_open\"} 50".to_owned(),
        format!("lb_flow_lookups_total{{{service}}} 900"),
        format!("lb_flow_recorded_total{{{service}}} 80"),
        format!("lb_backend_adaptive_share_ratios{{{second}}} 0.3"),
        format!("lb_backend_adaptive_wanted_ratios{{{second}}} 0.25"),
        format!("lb_service_adaptive_held{{{service}}} 1"),
        format!("lb_service_adaptive_changes_total{{{service}}} 3"),
        format!("lb_flow_overflows_total{{{service}}} 5"),
        format!("lb_flow_promotion_overflows_total{{{service}}} 4"),
        format!("lb_flow_named_total{{{service}}} 6"),
        format!("lb_access_denied_total{{{service}}} 11"),
        format!("lb_source_limited_total{{{service}}} 21"),
        format!("lb_service_limited_total{{{service}}} 31"),
        format!("lb_sessions{{{service}}} 41"),
        format!("lb_ports_exhausted_total{{{service}}} 51"),
        format!("lb_client_address_untold_total{{{service}}} 61"),
        format!("lb_syn_cookies_sent_total{{{service}}} 71"),
        format!("lb_syn_cookies_valid_total{{{service}}} 81"),
        format!("lb_syn_cookies_invalid_total{{{service}}} 91"),
        "lb_flow_entries{table=\"sessions\"} 3".to_owned(),
        "lb_flow_capacity{table=\"sessions\"} 9".to_owned(),
        "lb_pool_ports{pool=\"snat\"} 200".to_owned(),
        "lb_pool_sessions{pool=\"snat\"} 3".to_owned(),
        format!("lb_flow_records{{{service},use=\"ended\"}} 1"),
        format!("lb_flow_records{{{service},use=\"moving\"}} 40"),
        format!("lb_flow_records{{{service},use=\"away\"}} 20"),
        format!("lb_flow_records{{{service},use=\"home\"}} 3"),
        format!("lb_slots{{{service},phase=\"steady\"}} 248"),
        format!("lb_slots{{{service},phase=\"moving\"}} 2"),
        format!("lb_slots{{{service},phase=\"settling\"}} 1"),
        format!("lb_slots_passed_total{{{service},phase=\"steady\"}} 27"),
        format!("lb_slots_passed_total{{{service},phase=\"moving\"}} 30"),
        format!("lb_slots_passed_total{{{service},phase=\"settling\"}} 28"),
        format!("lb_backend_state{{{first},state=\"suspect\"}} 1"),
        format!("lb_backend_state_since_seconds{{{first}}} 1.5"),
        "lb_events_total 9".to_owned(),
        format!("lb_tier_share_ratios{{{service},tier=\"1\"}} 0.25"),
        format!("lb_service_panic{{{service}}} 1"),
        format!("lb_backend_used_in_panic{{{first}}} 0"),
        format!("lb_backend_used_in_panic{{{second}}} 1"),
        format!("lb_tier_healthy_backends{{{service},tier=\"0\"}} 1"),
        format!("lb_backend_recorded_flows{{{first}}} 6"),
        format!("lb_backend_connections{{{second}}} 4"),
        format!("lb_backend_weight{{{second}}} 3"),
        format!("lb_backend_effective_weight{{{second}}} 1.5"),
        format!("lb_backend_recorded_flows{{{leaving}}} 7"),
        format!("lb_backend_packets_total{{{leaving}}} 11"),
    ] {
        assert!(page.lines().any(|l| l == line), "{line}\nis not in\n{page}");
    }
    for unknown in [
        format!("latency_seconds{{{second}"),
        format!("lb_backend_connections{{{first}"),
    ] {
        assert!(!page.contains(&unknown), "unknown is absent, not 0: {page}");
    }
    for state in ["up", "reachable", "draining", "weight", "slots"] {
        let line = format!("lb_backend_{state}{{{leaving}");
        assert!(!page.contains(&line), "it has left the pool: {line}");
    }
    assert!(page.ends_with("# EOF\n"), "{page}");
}

#[test]
fn each_metric_is_explained_once() {
    let page = metrics::render(&snapshot());
    let names = |mark| {
        page.lines()
            .filter_map(move |l| l.strip_prefix(mark)?.split(' ').next())
    };
    let helped: Vec<_> = names("# HELP ").collect();
    let mut once = helped.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), helped.len(), "{page}");
    assert_eq!(names("# TYPE ").collect::<Vec<_>>(), helped);
}

/// The whole answer to `GET path`.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn metrics_and_health_are_served_until_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (handle, mut requests) = Handle::new();
    let agent = tokio::spawn(async move {
        while let Some(Request::Snapshot(reply)) = requests.recv().await {
            let _ = reply.send(snapshot());
        }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(metrics::serve(listener, handle, async {
        let _ = stopped.await;
    }));

    let page = get(address, "/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains(metrics::CONTENT_TYPE) && page.contains("lb_generation 7"),
        "{page}"
    );
    assert!(get(address, "/healthz").await.ends_with("ok\n"));
    assert!(get(address, "/").await.starts_with("HTTP/1.1 404"));

    agent.abort();
    let _ = agent.await;
    for path in ["/metrics", "/healthz"] {
        let answer = get(address, path).await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"),
            "{answer}"
        );
    }
    stop.send(()).unwrap();
    timeout(Duration::from_secs(10), server)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// How many connections of one address the server at `at` answers at a time, of more than it is to.
async fn let_in(at: SocketAddr) -> usize {
    let mut open = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let answered = async {
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                .await?;
            stream.read_exact(&mut [0; 12]).await
        };
        let answered = timeout(Duration::from_secs(60), answered).await.unwrap();
        if answered.is_ok() {
            open.push(stream);
        }
    }
    open.len()
}

#[tokio::test]
async fn neither_metrics_nor_reports_take_more_connections_of_an_address_than_leave_room_for_checks()
 {
    let [page, reports] = [
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    ];
    let ports = [&page, &reports].map(|listener| listener.local_addr().unwrap());
    let (handle, _requests) = Handle::new();
    tokio::spawn(metrics::serve(page, handle.clone(), pending()));
    tokio::spawn(api::serve_reports(reports, handle, pending()));
    for at in ports {
        assert_eq!(let_in(at).await, 256);
    }
}
