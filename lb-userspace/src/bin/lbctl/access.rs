//! `lbctl access-list`.

use std::{fs, path::Path};

use lb_userspace::{
    api::{
        client::Client,
        dto::{AccessList, AccessListSummary, Prefixes},
    },
    model::{AccessEdit, Prefix, parse_prefixes},
};

use crate::{
    args::{AccessVerb, Output, PrefixArgs},
    failure::Failure,
    output,
};

/// Carries out a verb; returns what to print.
pub async fn run(client: &Client, verb: &AccessVerb, output: Output) -> Result<String, Failure> {
    let (changed, line) = match verb {
        AccessVerb::List => {
            let lists = client.access_lists().await?;
            return match output {
                Output::Json => output::json(&lists),
                Output::Table => Ok(list(&lists)),
            };
        }
        AccessVerb::Show { list: name } => {
            let list = client.access_list(name).await?;
            return match output {
                Output::Json => output::json(&list),
                Output::Table => Ok(show(&list)),
            };
        }
        AccessVerb::Check { list: name, source } => {
            let judged = client.judge(name, *source).await?;
            return match output {
                Output::Json => output::json(&judged),
                Output::Table => Ok(format!(
                    "{}: {} by {}\n",
                    source, judged.access, judged.prefix
                )),
            };
        }
        AccessVerb::Set {
            list: name,
            prefixes,
        } => {
            let prefixes = read(prefixes)?;
            let count = prefixes.allow.len() + prefixes.deny.len();
            let line = format!("access list {name} has {count} prefixes\n");
            (client.set_access_list(name, &prefixes).await?, line)
        }
        AccessVerb::Edit {
            list: name,
            prefixes,
            remove,
        } => {
            let Prefixes { allow, deny } = read(prefixes)?;
            let remove = remove.clone();
            let edit = AccessEdit {
                allow,
                deny,
                remove,
            };
            let line = format!("access list {name} edited\n");
            (client.edit_access_list(name, &edit).await?, line)
        }
        AccessVerb::Remove { list: name } => {
            let line = format!("access list {name} removed\n");
            (client.remove_access_list(name).await?, line)
        }
    };
    match output {
        Output::Json => output::json(&changed),
        Output::Table => Ok(line),
    }
}

fn read(args: &PrefixArgs) -> Result<Prefixes, Failure> {
    let with = |given: &[Prefix], files: &[std::path::PathBuf]| {
        let mut all = given.to_vec();
        for file in files {
            all.extend(read_file(file)?);
        }
        Ok::<_, Failure>(all)
    };
    Ok(Prefixes {
        allow: with(&args.allow, &args.allow_file)?,
        deny: with(&args.deny, &args.deny_file)?,
    })
}

fn read_file(path: &Path) -> Result<Vec<Prefix>, Failure> {
    let shown = path.display();
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::Arguments(format!("cannot read {shown}: {error}")))?;
    parse_prefixes(&text)
        .map_err(|(line, error)| Failure::Arguments(format!("{shown}:{line}: {error}")))
}

fn list(lists: &[AccessListSummary]) -> String {
    if lists.is_empty() {
        return "no access lists: `lbctl access-list set` makes one\n".to_owned();
    }
    let header = ["NAME", "ALLOW", "DENY", "OTHERS", "SERVICES"];
    let row = |list: &AccessListSummary| {
        vec![
            list.name.clone(),
            list.allow.to_string(),
            list.deny.to_string(),
            list.others.clone(),
            list.services.len().to_string(),
        ]
    };
    let rows = lists.iter().map(row).collect();
    output::table(&header, &["ALLOW", "DENY", "SERVICES"], rows)
}

/// One prefix to a line: what `set` reads, but for the word before each.
fn show(list: &AccessList) -> String {
    let lines = |word: &'static str, prefixes: &[Prefix]| {
        let lines = prefixes
            .iter()
            .map(move |prefix| format!("{word} {prefix}\n"));
        lines.collect::<String>()
    };
    let services = list.services.iter().map(|id| format!("service {id}\n"));
    let services: String = services.collect();
    format!(
        "{}{}{services}",
        lines("allow", &list.allow),
        lines("deny", &list.deny)
    )
}
