//! `lbctl failover` and `lbctl failback`.

use lb_userspace::{api::client::Client, model::ServiceId};

use crate::{args::Output, failure::Failure, output};

/// Sends new flows to tier `to`.
pub async fn to(client: &Client, id: ServiceId, to: u8, output: Output) -> Result<String, Failure> {
    let line = format!("new flows of {id} go to tier {to} first, until `lbctl failback {id}`\n");
    go(client, id, to, output, line).await
}

/// Gives new flows back.
pub async fn back(client: &Client, id: ServiceId, output: Output) -> Result<String, Failure> {
    let line = format!("new flows of {id} go to the first tier that can take them\n");
    go(client, id, 0, output, line).await
}

async fn go(
    client: &Client,
    id: ServiceId,
    tier: u8,
    output: Output,
    line: String,
) -> Result<String, Failure> {
    let changed = client.fail_over(id, tier).await?;
    match output {
        Output::Json => output::json(&changed),
        Output::Table => Ok(line),
    }
}
