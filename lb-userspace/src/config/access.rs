//! `[[access_list]]`, and the files of prefixes that it names.

use std::collections::BTreeMap;

use super::reader::{Located, Section};
use crate::model::{AccessList, ModelError, Prefix, group, parse_prefixes};

const ACCESS_LIST: &[&str] = &["name", "allow", "deny", "allow_file", "deny_file"];

/// Reads a file that the configuration names, or says why there is none.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<NamedFile, String>;

/// A file that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    /// What it says.
    pub text: String,
    /// Who may do what with it, as `stat` has it.
    pub mode: u32,
}

/// All access lists.
pub(super) fn read_all(root: &Section<'_>, read: ReadFile<'_>) -> Vec<AccessList> {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut lists = Vec::new();
    for section in root.sections("access_list", ACCESS_LIST) {
        section.require("name", "office");
        let name = section.value("name", |text| group::parse_name_of("a list", text));
        let allow = prefixes(&section, "allow", "allow_file", read);
        let deny = prefixes(&section, "deny", "deny_file", read);
        let (Some(name), Some(allow), Some(deny)) = (name.map(Located::into_inner), allow, deny)
        else {
            continue;
        };
        let span = section.span_of("name");
        let line = section.report().line(span.start);
        if let Some(first) = lines.insert(name.clone(), line) {
            let problem = format!("access list {name} is on line {first} already");
            section.error(span, "name", problem);
            continue;
        }
        match AccessList::new(&name, allow, deny) {
            Ok(list) => lists.push(list),
            Err(ModelError::BadAccessList { problem, .. }) => {
                section.error(section.span(), "", problem);
            }
            Err(error) => section.error(section.span(), "", error.to_string()),
        }
    }
    lists
}

/// The prefixes at a key, and those in the file at another; nothing where one of them is wrong.
fn prefixes(
    section: &Section<'_>,
    key: &str,
    file_key: &str,
    read: ReadFile<'_>,
) -> Option<Vec<Prefix>> {
    let mut sound = true;
    let mut prefixes = Vec::new();
    for text in section.all_strings(key)? {
        match text.get_ref().parse::<Prefix>() {
            Ok(prefix) => prefixes.push(prefix),
            Err(error) => {
                section.error(text.span(), key, error.to_string());
                sound = false;
            }
        }
    }
    if section.has(file_key) {
        let from_file = section.value(file_key, |path| {
            let file = read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
            parse_prefixes(&file.text).map_err(|(line, error)| format!("{path}:{line}: {error}"))
        });
        prefixes.extend(from_file?.into_inner());
    }
    sound.then_some(prefixes)
}
