//! `lbctl announce`.

use std::net::IpAddr;

use lb_userspace::api::{client::Client, dto::Announced};

use crate::{args::Output, failure::Failure, output};

/// Has a VIP announced once more, or all.
pub async fn run(client: &Client, vip: Option<IpAddr>, output: Output) -> Result<String, Failure> {
    let announced = client.announce(vip).await?;
    match output {
        Output::Json => output::json(&announced),
        Output::Table => Ok(line(&announced)),
    }
}

fn line(announced: &Announced) -> String {
    let vips: Vec<String> = announced.vips.iter().map(ToString::to_string).collect();
    let interfaces: Vec<&str> = announced.interfaces.iter().map(String::as_str).collect();
    match (&vips[..], &interfaces[..]) {
        ([], _) => {
            "nothing is announced: `lbctl service set --announce true` says what is\n".to_owned()
        }
        (_, []) => "no interface has a link: VIPs are announced once one has\n".to_owned(),
        _ => format!(
            "{} announced on {}\n",
            vips.join(", "),
            interfaces.join(", ")
        ),
    }
}
