//! Kinds of checks and settings of them, through `lbd`: what each finds of real servers, by `lbctl`.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    header::{HeaderMap, HeaderValue},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lb_tests::{
    answering::answering,
    config::{Health, Service},
    load::Background,
    netns::Namespace,
    process::run,
    skip::with_root,
    stage::{BACKENDS, Stage, web, web_address},
    topology::{Topology, backend_name},
    wait::wait_until,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 7_300;
const FAST: &str = "interval = \"200ms\", timeout = \"200ms\", rise = 2, fall = 3";

/// A stage whose web service is checked so.
fn checked(topology: Topology, check: &str) -> Result<(Stage, Service)> {
    let service = web(Health::NONE).checked(&[check]);
    Ok((Stage::new(topology, vec![service.clone()])?, service))
}

fn backend(stage: &Stage, service: &Service, n: u8) -> Result<Value> {
    let backend = stage.backend(service, web_address(n))?;
    backend.context("the backend")
}

fn last_error(stage: &Stage, service: &Service, n: u8) -> Result<String> {
    let backend = backend(stage, service, n)?;
    let error = backend["last_error"].as_str();
    Ok(error.unwrap_or_default().to_owned())
}

#[test]
fn icmp_checks_find_the_host_that_answers_no_echo_request() -> Result<()> {
    with_root(
        "icmp_checks_find_the_host_that_answers_no_echo_request",
        || {
            let check = format!("{{ type = \"icmp\", {FAST} }}");
            let (stage, service) = checked(Topology::new(BACKENDS)?, &check)?;
            for n in 1..=BACKENDS {
                stage.await_condition(&service, web_address(n), "up")?;
            }
            let silent = |silent: u8| {
                let setting = format!("net.ipv4.icmp_echo_ignore_all={silent}");
                let host = stage.topology.backend(2);
                run(host.command("sysctl").args(["-q", "-w", &setting])).map(drop)
            };
            silent(1)?;
            stage.await_condition(&service, web_address(2), "down")?;
            let error = last_error(&stage, &service, 2)?;
            assert_eq!(error, "no answer within 200ms");
            let answers = stage.answers(&service, 50)?;
            ensure!(!answers.contains_key(&backend_name(2)), "{answers:?}");
            silent(0)?;
            stage.await_condition(&service, web_address(2), "up")
        },
    )
}

/// A gRPC server that answers every call so, as of `grpc.health.v1`: 1 says that it serves, 2 that it does not.
fn grpc(namespace: &Namespace, status: u8) -> Result<Background<()>> {
    answering(namespace, PORT, move |stream| async move {
        let answer = service_fn(move |request| call(request, status));
        let connection = http2::Builder::new(TokioExecutor::new());
        let served = connection.serve_connection(TokioIo::new(stream), answer);
        served.await.map_err(io::Error::other)
    })
}

type Frames = StreamBody<stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>>;

async fn call(request: Request<Incoming>, status: u8) -> Result<Response<Frames>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    // Not compressed, two bytes: field 1, a number.
    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    Ok(Response::new(StreamBody::new(stream::iter(frames))))
}

#[test]
fn grpc_checks_find_the_server_that_says_that_it_does_not_serve() -> Result<()> {
    with_root(
        "grpc_checks_find_the_server_that_says_that_it_does_not_serve",
        || {
            let topology = Topology::new(BACKENDS)?;
            let statuses = [1, 2, 1];
            let hosts = topology.backends.iter().zip(statuses);
            let servers: Result<Vec<_>> = hosts.map(|(host, status)| grpc(host, status)).collect();
            let _servers = servers?;
            let check = format!("{{ type = \"grpc\", port = {PORT}, {FAST} }}");
            let (stage, service) = checked(topology, &check)?;
            stage.await_condition(&service, web_address(2), "down")?;
            let error = last_error(&stage, &service, 2)?;
            ensure!(error.contains("NOT_SERVING"), "{error}");
            for n in [1, 3] {
                stage.await_condition(&service, web_address(n), "up")?;
            }
            Ok(())
        },
    )
}

/// What an HTTP server answers, how long it takes for that, and what it has been asked.
#[derive(Debug, Clone, Default)]
struct Says(Arc<Mutex<Said>>);

#[derive(Debug, Clone, Default)]
struct Said {
    head: String,
    takes: Duration,
    asked: Vec<(Instant, String)>,
}

impl Says {
    fn new(head: &str) -> Self {
        let says = Self::default();
        says.says(head, Duration::ZERO);
        says
    }

    fn says(&self, head: &str, takes: Duration) {
        let mut said = self.0.lock().expect("no panic");
        (said.head, said.takes) = (head.to_owned(), takes);
        said.asked.clear();
    }

    fn asked(&self) -> Vec<(Instant, String)> {
        self.0.lock().expect("no panic").asked.clone()
    }

    /// From each request to the next.
    fn gaps(&self) -> Vec<Duration> {
        let asked = self.asked();
        asked.windows(2).map(|two| two[1].0 - two[0].0).collect()
    }

    fn start(&self, namespace: &Namespace) -> Result<Background<()>> {
        let says = self.clone();
        answering(namespace, PORT, move |stream| says.clone().answer(stream))
    }

    async fn answer(self, mut stream: TcpStream) -> io::Result<()> {
        let mut request = vec![0; 2_048];
        let length = stream.read(&mut request).await?;
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let (head, takes) = {
            let mut said = self.0.lock().expect("no panic");
            said.asked.push((Instant::now(), request));
            (said.head.clone(), said.takes)
        };
        sleep(takes).await;
        let answer = format!("HTTP/1.1 {head}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await
    }
}

/// Three servers that answer so.
fn say(topology: &Topology, heads: [&str; 3]) -> Result<([Says; 3], Vec<Background<()>>)> {
    let says = heads.map(Says::new);
    let hosts = topology.backends.iter().zip(&says);
    let servers: Result<_> = hosts.map(|(host, says)| says.start(host)).collect();
    Ok((says, servers?))
}

#[test]
fn http_checks_send_headers_and_expect_those_and_the_status_that_they_are_told() -> Result<()> {
    with_root(
        "http_checks_send_headers_and_expect_those_and_the_status_that_they_are_told",
        || {
            let topology = Topology::new(BACKENDS)?;
            let (right, no_header) = ("302 Found\r\nx-ready: yes, all", "302 Found");
            let (says, _servers) = say(&topology, [right, "200 OK\r\nx-ready: yes", no_header])?;
            let check = format!(
                "{{ type = \"http\", port = {PORT}, path = \"/ready\", status = [\"204\", \"301-302\"], \
                 headers = {{ x-probe = \"lb\" }}, expect_headers = {{ x-ready = \"^yes\" }}, {FAST} }}"
            );
            let (stage, service) = checked(topology, &check)?;
            stage.await_condition(&service, web_address(1), "up")?;
            for (n, why) in [(2, "200"), (3, "x-ready")] {
                stage.await_condition(&service, web_address(n), "down")?;
                let error = last_error(&stage, &service, n)?;
                ensure!(error.contains(why), "{error}");
            }
            let asked = says[0].asked();
            let (_, request) = asked.last().context("a request")?;
            ensure!(request.starts_with("GET /ready HTTP/1.1\r\n"), "{request}");
            ensure!(
                request.to_lowercase().contains("x-probe: lb\r\n"),
                "{request}"
            );
            says[2].says(right, Duration::ZERO);
            stage.await_condition(&service, web_address(3), "up")
        },
    )
}

#[test]
fn in_doubt_probes_follow_each_other_faster() -> Result<()> {
    with_root("in_doubt_probes_follow_each_other_faster", || {
        let topology = Topology::new(BACKENDS)?;
        let (says, _servers) = say(&topology, ["200 OK"; 3])?;
        let check = format!(
            "{{ type = \"http\", port = {PORT}, interval = \"3s\", fast_interval = \"100ms\", timeout = \"100ms\", fall = 4 }}"
        );
        let (stage, service) = checked(topology, &check)?;
        stage.await_condition(&service, web_address(2), "up")?;
        says[1].says("500 Broken", Duration::ZERO);
        stage.await_condition(&service, web_address(2), "down")?;
        let gaps = says[1].gaps();
        ensure!(gaps.len() >= 3, "{gaps:?}");
        let in_doubt: Duration = gaps[..3].iter().sum();
        ensure!(in_doubt < Duration::from_secs(2), "{gaps:?}");
        Ok(())
    })
}

#[test]
fn probes_that_may_jitter_do_not_come_at_equal_times() -> Result<()> {
    with_root("probes_that_may_jitter_do_not_come_at_equal_times", || {
        let topology = Topology::new(BACKENDS)?;
        let (says, _servers) = say(&topology, ["200 OK"; 3])?;
        let check = format!(
            "{{ type = \"http\", port = {PORT}, interval = \"300ms\", timeout = \"300ms\", jitter = \"150ms\" }}"
        );
        let (stage, service) = checked(topology, &check)?;
        stage.await_condition(&service, web_address(1), "up")?;
        wait_until("fifteen probes", SOON, || says[0].asked().len() > 15)?;
        let gaps = says[0].gaps();
        let [least, most] = [gaps.iter().min(), gaps.iter().max()].map(|gap| gap.copied());
        let (least, most) = least.zip(most).context("gaps")?;
        ensure!(most - least > Duration::from_millis(60), "{gaps:?}");
        let all: Duration = gaps.iter().sum();
        let mean = all / u32::try_from(gaps.len())?;
        // No probe shifts the ones after it.
        ensure!(mean < Duration::from_millis(400), "{mean:?}");
        Ok(())
    })
}

/// What a server takes that is well, and one that is ten times slower, which the check's timeout bears.
const WELL: Duration = Duration::from_millis(15);
const SLOW: Duration = Duration::from_millis(150);

/// A row of docs/failures.md, which it prints.
#[test]
fn a_server_that_answers_ten_times_slower_in_time_is_told_to_be_and_gets_less_and_no_request_fails()
-> Result<()> {
    const NAME: &str = "a_server_that_answers_ten_times_slower_in_time_is_told_to_be_and_gets_less_and_no_request_fails";
    with_root(NAME, || {
        let topology = Topology::new(BACKENDS)?;
        let (says, _servers) = say(&topology, ["200 OK"; 3])?;
        for server in &says {
            server.says("200 OK", WELL);
        }
        let check = format!(
            "{{ type = \"http\", port = {PORT}, interval = \"500ms\", timeout = \"500ms\", detector = \"phi\" }}"
        );
        let mut service = web(Health::NONE).checked(&[&check]);
        let adaptive = "{ from = [\"latency\"], interval = \"1s\" }".to_owned();
        service.keys.push(("adaptive".to_owned(), adaptive));
        // Weights follow as fast as slots come to rest.
        let service = service.with("moving_time", "1s");
        let stage = Stage::new(topology, vec![service.clone()])?;
        let seen = |n: u8| -> Option<u64> {
            let backend = backend(&stage, &service, n).ok()?;
            backend["checks"][0]["passed"].as_u64()
        };
        wait_until("what is usual is known", SOON, || {
            seen(2).is_some_and(|seen| seen > 15)
        })?;
        let slow_since = Instant::now();
        says[1].says("200 OK", SLOW);
        wait_until("it is suspect", SOON, || {
            let backend = backend(&stage, &service, 2).unwrap_or_default();
            backend["standing"]["state"] == "suspect"
        })?;
        let suspect = slow_since.elapsed();
        let error = last_error(&stage, &service, 2)?;
        ensure!(error.starts_with("slow: took 1"), "{error}");
        let half = |n: u8| -> bool {
            let backend = backend(&stage, &service, n).unwrap_or_default();
            let percent = backend["adaptive"]["weight_percent"].as_u64();
            percent.is_some_and(|percent| percent <= 50)
        };
        wait_until("it has half of its weight", 2 * SOON, || half(2))?;
        let (spared, answers) = (slow_since.elapsed(), stage.answers(&service, 200)?);
        println!(
            "| slow (10x), in time | suspect {} ms | half of its weight {} ms | {answers:?} |",
            suspect.as_millis(),
            spared.as_millis()
        );
        assert_eq!(backend(&stage, &service, 2)?["condition"], "up");
        assert_eq!(answers.values().sum::<usize>(), 200);
        ensure!(!half(1) && !half(3), "they are as ever");
        Ok(())
    })
}
