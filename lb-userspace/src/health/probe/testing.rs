//! How tests put a probe to a server of their own.

use super::*;
use crate::model::Check;

/// Puts `check` to the server at `address`, with time enough.
pub(super) async fn ask(address: SocketAddr, check: &Check) -> Result<Answer, ProbeError> {
    let patient = Check {
        timeout: Duration::from_secs(10),
        ..check.clone()
    };
    ask_at(address, &patient).await
}

/// The same with the check's own timeout.
pub(super) async fn ask_at(address: SocketAddr, check: &Check) -> Result<Answer, ProbeError> {
    let network = Network::default();
    let question = network.prepare(&check.probe).await?;
    network.ask(&subject(address, check), &question).await
}

/// A backend at `address`, asked by `check`.
pub(super) fn subject(address: SocketAddr, check: &Check) -> Subject {
    Subject {
        target: Target {
            service: "10.0.0.1:80/tcp".parse().unwrap(),
            address,
        },
        address,
        check: check.probe.kind().to_owned(),
        timeout: check.timeout,
    }
}
