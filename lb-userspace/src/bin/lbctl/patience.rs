//! Going on where the agent is away for a while, as it is when it is restarted or upgraded.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use lb_userspace::api::client::ClientError;
use tokio::time::sleep;

/// Asks every `pause`, the first time after one, until there is an answer or an error that waiting does not mend. That the agent
/// is away is told once, on the standard error.
pub async fn until_answered<T, F>(
    pause: Duration,
    mut ask: impl FnMut() -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut told = false;
    loop {
        sleep(pause).await;
        match ask().await {
            Err(away) if away.is_away() => {
                if !std::mem::replace(&mut told, true) {
                    // Nobody may be left to read it, which is no reason to stop.
                    let _ = writeln!(io::stderr(), "{away}; waiting for it");
                }
            }
            answer => return answer,
        }
    }
}
