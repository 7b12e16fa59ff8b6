//! Commands that fail: each by its exit code and one line, and changing nothing.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Ran, WEB, run, support::FakeAgent};

/// Fails with `code` and one line that contains `part`, and changes nothing.
async fn fail(agent: &FakeAgent, arguments: &str, code: i32, part: &str) {
    let before = agent.state();
    let Ran {
        code: got,
        stdout,
        stderr,
    } = run(&agent.socket, arguments).await;
    assert_eq!((got, stdout.as_str()), (code, ""), "{arguments}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{arguments}: {stderr}");
    assert!(
        stderr.starts_with("error: ") && stderr.contains(part),
        "{arguments}: {stderr}"
    );
    assert_eq!(agent.state(), before, "{arguments}");
}

#[tokio::test]
async fn bad_arguments_exit_with_2_and_one_line() {
    let agent = FakeAgent::start(WEB);
    for (arguments, part) in [
        ("service show web", "write ADDRESS:PORT/PROTOCOL"),
        ("service show 10.0.0.1:80", "`10.0.0.1:80` is not a service"),
        (
            "service show 127.0.0.1:80/tcp",
            "not a routable unicast address",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode dsr",
            "[possible values: nat, full-nat, ipip, gue, l2]",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2",
            "write ADDRESS:PORT",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80,wieght=2",
            "write weight=N",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80,weight=1001",
            "from 0 to 1000",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80,",
            "write weight=N",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --interval 5",
            "such as 500ms",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --timeout 10us",
            "whole milliseconds",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --health-path /x",
            "for --health http and https only",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --check {type=\"carp\"}",
            "`carp` is not a type of check",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --health-port 0",
            "65535",
        ),
        (
            "backend add 10.0.0.1:80/tcp web:80",
            "`web:80` is not a backend",
        ),
        (
            "backend weight 10.0.0.1:80/tcp 10.1.0.2:80 1001",
            "0..=1000",
        ),
        (
            "backend weight 10.0.0.1:80/tcp 10.1.0.2:80 some",
            "invalid digit",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80,max-connections=0",
            "max-connections=N, with N from 1",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80,weight=1,limit=3",
            "`limit=3` is not an option of a backend",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --scheduler rr",
            "[possible values: maglev, source-hash, three-tuple-hash, round-robin, weighted-round-robin, least-connections, weighted-least-connections, power-of-two-choices]",
        ),
        (
            "service set 10.0.0.1:80/tcp --flow-state never",
            "[possible values: auto, always]",
        ),
        (
            "service set 10.0.0.1:80/tcp --on-down drop",
            "[possible values: keep, resteer]",
        ),
        (
            "service set 10.0.0.1:80/tcp --no-backend refuse",
            "[possible values: drop, reset, unreachable, pass]",
        ),
        (
            "service set 10.0.0.1:80/tcp --moving-time 5",
            "such as 500ms, 2s or 1m",
        ),
        (
            "service set 10.0.0.1:80/tcp --dead-after 1us",
            "whole milliseconds",
        ),
        (
            "backend add 10.0.0.1:80/tcp 10.1.0.4:80 --max-connections 0",
            "0 is not in 1..",
        ),
        (
            "backend limit 10.0.0.1:80/tcp 10.1.0.2:80 0",
            "1 to 4294967295, or none",
        ),
        (
            "flows --phase still",
            "[possible values: steady, moving, settling]",
        ),
        ("flows --limit 100001", "0..=100000"),
        ("flows --service web", "write ADDRESS:PORT/PROTOCOL"),
        ("flows --backend web:80", "`web:80` is not a backend"),
        ("status --name A/B", "use 1 to 32 of a-z, 0-9 and -"),
        ("status --output yaml", "[possible values: table, json]"),
    ] {
        fail(&agent, arguments, 2, part).await;
    }
    for arguments in [
        "",
        "service",
        "server list",
        "service show",
        "service set 10.0.0.1:80/tcp",
        "backend limit 10.0.0.1:80/tcp 10.1.0.2:80",
        "flows --count --limit 3",
        "status --verbos",
    ] {
        let ran = run(&agent.socket, arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{arguments}");
        assert!(
            ran.stderr.contains("Usage: lbctl"),
            "{arguments}: {}",
            ran.stderr
        );
    }
}

#[tokio::test]
async fn unknown_services_and_backends_exit_with_4() {
    let agent = FakeAgent::start(WEB);
    for arguments in [
        "service show 10.0.0.9:80/tcp",
        "service remove 10.0.0.9:80/tcp",
        "service set 10.0.0.9:80/tcp --scheduler maglev",
        "flows --service 10.0.0.9:80/tcp",
        "backend list 10.0.0.9:80/tcp",
        "backend add 10.0.0.9:80/tcp 10.1.0.2:80",
    ] {
        fail(
            &agent,
            arguments,
            4,
            "no service 10.0.0.9:80/tcp: `lbctl service list`",
        )
        .await;
    }
    for verb in ["remove", "drain", "undrain"] {
        let arguments = format!("backend {verb} 10.0.0.1:80/tcp 10.1.0.9:80");
        fail(
            &agent,
            &arguments,
            4,
            "`lbctl backend list 10.0.0.1:80/tcp` shows",
        )
        .await;
    }
    for arguments in [
        "backend weight 10.0.0.1:80/tcp 10.1.0.9:80 1",
        "backend limit 10.0.0.1:80/tcp 10.1.0.9:80 1",
        "flows --count --service 10.0.0.1:80/tcp --backend 10.1.0.9:80",
    ] {
        fail(&agent, arguments, 4, "no backend 10.1.0.9:80").await;
    }
}

#[tokio::test]
async fn refused_changes_exit_with_5() {
    let agent = FakeAgent::start(WEB);
    for (arguments, part) in [
        ("service add 10.0.0.1:80/tcp --mode nat", "exists already"),
        (
            "service add 10.0.0.2:80/tcp --mode nat --ring-size 1000",
            "1000 is not one of",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --backend 10.1.0.2:80",
            "use mode \"ipip\"",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --timeout 2s",
            "1 ms to the interval",
        ),
        (
            "service add 10.0.0.2:507/tcp --mode nat",
            "raise limits.services",
        ),
        (
            "service set 10.0.0.1:80/tcp --ring-size 1000",
            "ring_size: 1000 is not one of",
        ),
        (
            "service set 10.0.0.1:80/tcp --moving-time 8days",
            "moving_time: 8days is out of range: 0s to 1 week",
        ),
        (
            "service set [2001:db8::1]:53/udp --moving-time 0s --scheduler round-robin",
            "use scheduler \"maglev\", \"source-hash\" or \"three-tuple-hash\"",
        ),
        (
            "service set 10.0.0.1:80/tcp --moving-time 0",
            "leave max_connections out",
        ),
        (
            "service add 10.0.0.2:80/tcp --mode nat --dead-after 8days",
            "dead_after: 8days is out of range",
        ),
        (
            "backend add 10.0.0.1:80/tcp 10.1.0.2:80",
            "`lbctl backend weight`",
        ),
        (
            "backend add 10.0.0.1:80/tcp [fd00::2]:80",
            "another address family",
        ),
    ] {
        fail(&agent, arguments, 5, part).await;
    }
}

#[tokio::test]
async fn an_agent_that_is_down_or_stopping_exits_with_3() {
    let mut agent = FakeAgent::start(WEB);
    agent.end_loop().await;
    fail(&agent, "status", 3, "the agent is stopping").await;
    let socket = agent.socket.clone();
    let directory = agent.stop().await;
    for socket in [socket, directory.path().join("none.sock")] {
        let ran = run(&socket, "backend drain 10.0.0.1:80/tcp 10.1.0.2:80").await;
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
        let expected = format!(
            "error: no agent answers at {}: is lbd running? (systemctl status lbd, or --socket)\n",
            socket.display()
        );
        assert_eq!(ran.stderr, expected);
    }
}

#[tokio::test]
async fn a_failing_kernel_or_a_strange_answer_exits_with_1() {
    let agent = FakeAgent::start(WEB);
    let arguments = "service add 10.0.0.2:500/tcp --mode nat";
    fail(&agent, arguments, 1, "the kernel refused the change").await;

    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("strange.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let strange = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Unread, the request would end the connection before its answer is read.
        assert!(stream.read(&mut [0; 1_024]).await.unwrap() > 0);
        stream.write_all(b"220 mail ready\r\n\r\n").await.unwrap();
    });
    let ran = run(&socket, "status").await;
    assert_eq!(
        (ran.code, ran.stderr.lines().count()),
        (1, 1),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("is not of this version's API"),
        "{}",
        ran.stderr
    );
    strange.await.unwrap();
}
