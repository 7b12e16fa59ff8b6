//! Probes over TCP and HTTP against real sockets on the loopback: servers that answer, refuse, hang and
//! misbehave.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;
use crate::{
    health::probe::testing::ask_at,
    health::probe::{Network, Prober as _},
    model::{Check, Probe},
};

const TIMEOUT: Duration = Duration::from_millis(300);

fn check(probe: Probe) -> Check {
    Check {
        timeout: TIMEOUT,
        ..Check::new(probe)
    }
}

fn http(path: &str, host: Option<&str>) -> Check {
    check(Probe::Http(Http {
        path: path.to_owned(),
        host: host.map(str::to_owned),
        ..Http::default()
    }))
}

/// How long a probe of the server at `address` took.
async fn probe(address: SocketAddr, check: &Check) -> Result<Duration, ProbeError> {
    ask_at(address, check).await.map(|answer| answer.latency)
}

/// A server for one connection: reads a request, then runs `answer`. Yields the request.
async fn serve<F: Future<Output = ()> + Send>(
    answer: impl FnOnce(TcpStream) -> F + Send + 'static,
) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4_096];
        let read = stream.read(&mut request).await.unwrap();
        answer(stream).await;
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    (address, server)
}

/// Probes a server that answers with these bytes and closes.
async fn probe_answer(answer: impl Into<Vec<u8>>) -> Result<Duration, ProbeError> {
    probe_answer_by(&http("/", None), answer).await
}

async fn probe_answer_by(http: &Check, answer: impl Into<Vec<u8>>) -> Result<Duration, ProbeError> {
    let answer = answer.into();
    let (address, server) = serve(move |mut stream| async move {
        let _ = stream.write_all(&answer).await;
    })
    .await;
    let outcome = probe(address, http).await;
    server.abort();
    outcome
}

async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn tcp_probe_of_a_listener_succeeds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert!(probe(address, &check(Probe::TCP)).await.unwrap() < TIMEOUT);
}

#[tokio::test]
async fn probes_ipv6() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    assert!(probe(address, &check(Probe::TCP)).await.is_ok());
}

#[tokio::test]
async fn refused_connection_fails_at_once_not_after_the_timeout() {
    let slow = Duration::from_secs(60);
    for asked in [Probe::TCP, Probe::Http(Http::default())] {
        let health = Check {
            timeout: slow,
            ..check(asked)
        };
        let address = closed_port().await;
        let outcome = time::timeout(slow / 6, probe(address, &health))
            .await
            .unwrap();
        assert_eq!(outcome, Err(ProbeError::Refused));
    }
}

#[tokio::test]
async fn address_without_a_way_is_down_and_not_dead() {
    // The kernel knows no way by TCP to a broadcast address, and the loopback network has one.
    let address = "127.255.255.255:80".parse().unwrap();
    for check in [check(Probe::TCP), http("/", None)] {
        let error = probe(address, &check).await.unwrap_err();
        assert!(matches!(error, ProbeError::NoWay(_)), "{error:?}");
        assert!(error.blames_backend() && !error.says_dead(true));
    }
}

#[tokio::test]
async fn tcp_probe_without_an_answer_times_out() {
    // A full backlog drops further SYNs, as a host that is gone would.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _filler = TcpStream::connect(address).await.unwrap();
    let outcome = probe(address, &check(Probe::TCP)).await;
    assert_eq!(outcome, Err(ProbeError::Timeout(TIMEOUT)));
}

#[tokio::test]
async fn statuses_from_200_to_399_are_good_and_no_others() {
    for (status, good) in [
        (199, false),
        (200, true),
        (204, true),
        (302, true),
        (399, true),
    ] {
        let outcome =
            probe_answer(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        // 1xx are interim answers: the final one never comes here.
        let expected = if good {
            Ok(())
        } else {
            Err(ProbeError::Closed)
        };
        assert_eq!(outcome.map(drop), expected, "{status}");
    }
    for status in [400, 404, 500, 503, 599] {
        let outcome =
            probe_answer(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(
            outcome,
            Err(ProbeError::Status(status, "200 to 399".to_owned()))
        );
    }
}

fn wanting(change: impl FnOnce(&mut Http)) -> Check {
    let mut http = Http::default();
    change(&mut http);
    check(Probe::Http(http))
}

const ANSWER: &str = "HTTP/1.1 418 X\r\ncontent-length: 9\r\nx-role: primary 1\r\n\r\nall right";

#[tokio::test]
async fn only_the_statuses_named_are_right() {
    let named = |text: &str| {
        let statuses = text.split(' ').map(|status| status.parse().unwrap());
        let statuses = statuses.collect();
        wanting(|http| http.status = statuses)
    };
    assert!(probe_answer_by(&named("200 410-420"), ANSWER).await.is_ok());
    assert!(probe_answer_by(&named("418"), ANSWER).await.is_ok());
    let error = probe_answer_by(&named("200 300-399"), ANSWER)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "status 418, expected 200 or 300 to 399");
}

#[tokio::test]
async fn body_and_headers_must_match_where_that_is_wanted() {
    let teapot = |http: &mut Http| http.status = vec!["418".parse().unwrap()];
    for (body, header, value, wrong) in [
        ("^all right$", "X-Role", "primary", None),
        ("r.ght", "x-role", "^primary [0-9]$", None),
        (
            "wrong",
            "x-role",
            "primary",
            Some("the body does not match /wrong/"),
        ),
        (
            "right",
            "x-role",
            "standby",
            Some("header x-role does not match /standby/"),
        ),
        ("right", "x-zone", ".", Some("no header x-zone")),
    ] {
        let check = wanting(|http| {
            teapot(http);
            http.body = Some(body.to_owned());
            http.expect_headers
                .insert(header.to_owned(), value.to_owned());
        });
        let outcome = probe_answer_by(&check, ANSWER).await;
        let error = outcome.err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), wrong);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_or_never_ends_does_not_match() {
    let check = wanting(|http| http.body = Some("right".to_owned()));
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nall right";
    assert_eq!(probe_answer_by(&check, half).await, Err(ProbeError::Closed));
    let (address, _server) = serve(move |mut stream| async move {
        stream.write_all(half.as_bytes()).await.unwrap();
        std::future::pending().await
    })
    .await;
    assert_eq!(
        probe(address, &check).await,
        Err(ProbeError::Timeout(TIMEOUT))
    );
}

#[tokio::test]
async fn method_and_headers_are_those_configured() {
    let check = wanting(|http| {
        http.method = Method::Head;
        http.headers
            .insert("X-Token".to_owned(), "secret".to_owned());
        http.headers
            .insert("user-agent".to_owned(), "probe".to_owned());
    });
    let answer = |mut stream: TcpStream| async move {
        // The length is that of what GET would give: no body follows.
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head).await.unwrap();
    };
    let (address, server) = serve(answer).await;
    probe(address, &check).await.unwrap();
    let request = server.await.unwrap();
    assert!(request.starts_with("HEAD / HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x-token: secret\r\n"), "{request}");
    assert!(request.contains("user-agent: probe\r\n"), "{request}");
}

#[tokio::test]
async fn backends_that_are_asked_the_same_share_one_question_until_none_is() {
    let network = Network::default();
    let (one, other) = (http("/", None).probe, http("/other", None).probe);
    let first = network.prepare(&one).await.unwrap();
    assert!(Arc::ptr_eq(&first, &network.prepare(&one).await.unwrap()));
    drop(first);
    let _other = network.prepare(&other).await.unwrap();
    assert_eq!(
        network.questions.lock().unwrap().len(),
        1,
        "the first is forgotten"
    );
}

#[tokio::test]
async fn http_1_0_answer_is_fine() {
    assert!(probe_answer("HTTP/1.0 200 OK\r\n\r\nhello").await.is_ok());
}

#[tokio::test]
async fn request_names_path_host_and_asks_to_close() {
    let answer = |mut stream: TcpStream| async move {
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
    };
    let (address, server) = serve(answer).await;
    probe(address, &http("/live?x=1", Some("app.example")))
        .await
        .unwrap();
    let request = server.await.unwrap();
    assert!(
        request.starts_with("GET /live?x=1 HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(request.contains("host: app.example\r\n"), "{request}");
    assert!(request.contains("connection: close\r\n"), "{request}");

    let (address, server) = serve(answer).await;
    probe(address, &http("/", None)).await.unwrap();
    assert!(
        server
            .await
            .unwrap()
            .contains(&format!("host: {address}\r\n"))
    );
}

#[tokio::test]
async fn http_server_that_hangs_or_drips_its_header_times_out() {
    let (address, _hanging) = serve(|stream| async move {
        let _open = stream;
        std::future::pending().await
    })
    .await;
    let (dripping, _server) = serve(|mut stream| async move {
        let mut ticks = time::interval(TIMEOUT / 10);
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" {
            ticks.tick().await;
            let _ = stream.write_all(&[*byte]).await;
        }
    })
    .await;
    for address in [address, dripping] {
        let outcome = probe(address, &http("/", None)).await;
        assert_eq!(outcome, Err(ProbeError::Timeout(TIMEOUT)));
    }
}

#[tokio::test]
async fn status_decides_even_if_the_body_never_ends() {
    let (address, _server) = serve(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun";
        stream.write_all(head).await.unwrap();
        std::future::pending().await
    })
    .await;
    let latency = probe(address, &http("/", None)).await.unwrap();
    assert!(
        latency < TIMEOUT,
        "latency is that of the status: {latency:?}"
    );
}

#[tokio::test]
async fn endless_body_is_read_up_to_the_bound_only() {
    let health = Check {
        timeout: Duration::from_secs(30),
        ..http("/", None)
    };
    let (address, server) = serve(|mut stream| async move {
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 4_096]).await.is_ok() {}
    })
    .await;
    let outcome = probe(address, &health);
    assert!(
        time::timeout(Duration::from_secs(10), outcome)
            .await
            .unwrap()
            .is_ok()
    );
    time::timeout(Duration::from_secs(10), server)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn answers_that_are_not_http_say_so() {
    for garbage in [
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "\u{0}\u{1}\u{2}\u{3}\r\n\r\n",
    ] {
        let outcome = probe_answer(garbage).await;
        assert!(
            matches!(outcome, Err(ProbeError::Malformed { .. })),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn headers_beyond_the_bound_are_refused() {
    let huge = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
        "y".repeat(2 * MAX_ANSWER)
    );
    let outcome = probe_answer(huge).await;
    assert!(
        matches!(outcome, Err(ProbeError::Malformed { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn connection_closed_early_says_so() {
    for start in ["", "HTTP/1.1 20"] {
        assert_eq!(probe_answer(start).await, Err(ProbeError::Closed));
    }
}

#[test]
fn errors_are_one_line_each() {
    let messages = [
        (ProbeError::Refused, "connection refused"),
        (
            ProbeError::Timeout(Duration::from_millis(500)),
            "no answer within 500ms",
        ),
        (
            ProbeError::Status(503, "200 to 399 or 418".to_owned()),
            "status 503, expected 200 to 399 or 418",
        ),
        (ProbeError::Closed, "closed before answering"),
    ];
    for (error, message) in messages {
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn shortage_on_this_host_does_not_blame_the_backend() {
    let from = |code| ProbeError::from_connect(&io::Error::from_raw_os_error(code));
    assert!(!from(libc::EMFILE).blames_backend());
    assert!(!from(libc::EADDRNOTAVAIL).blames_backend());
    assert!(from(libc::EHOSTUNREACH).blames_backend());
    assert!(from(libc::ECONNREFUSED).blames_backend());
}

#[test]
fn who_is_said_not_to_be_there_is_dead_and_who_is_silent_or_broken_is_not() {
    let from = |code| ProbeError::from_connect(&io::Error::from_raw_os_error(code));
    for (error, dead) in [
        (from(libc::ECONNREFUSED), true),
        (from(libc::EHOSTUNREACH), true),
        (from(libc::EHOSTDOWN), true),
        (from(libc::ENETUNREACH), false),
        (from(libc::ENONET), false),
        (from(libc::ETIMEDOUT), false),
        (from(libc::ECONNRESET), false),
        (from(libc::EACCES), false),
        (from(libc::EMFILE), false),
        (ProbeError::Timeout(TIMEOUT), false),
        (ProbeError::Status(500, String::new()), false),
        (ProbeError::Closed, false),
        (ProbeError::Unexpected(String::new()), false),
        (ProbeError::Unaskable(String::new()), false),
    ] {
        assert_eq!(error.says_dead(true), dead, "{error:?}");
    }
}

#[test]
fn refusal_by_the_checks_own_port_says_nothing_of_the_flows() {
    assert!(!ProbeError::Refused.says_dead(false));
    assert!(!ProbeError::Unreachable(String::new()).says_dead(false));
}
