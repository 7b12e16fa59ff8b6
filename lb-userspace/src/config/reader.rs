//! Typed look-ups in parsed TOML that record every mistake with its place, instead of stopping at
//! the first. It knows nothing of what the keys mean.

use std::{cell::RefCell, ops::Range};

use clap::ValueEnum;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::ConfigError;
use crate::model::name_of;

/// A value and where it was written.
pub(super) type Located<T> = Spanned<T>;

type Span = Range<usize>;

/// The mistakes found so far. Shared by all sections of a file, hence the cell.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    /// Where each line starts.
    lines: Vec<usize>,
    errors: RefCell<Vec<(usize, ConfigError)>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let starts = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self {
            file,
            text,
            lines: std::iter::once(0).chain(starts).collect(),
            errors: RefCell::default(),
        }
    }

    /// Records that `key`, written at `span`, is wrong.
    pub(super) fn error(&self, span: Span, key: &str, problem: impl Into<String>) {
        let (line, column) = self.position(span.start);
        let error = ConfigError {
            file: self.file.to_owned(),
            line,
            column,
            key: key.to_owned(),
            problem: problem.into(),
        };
        self.errors.borrow_mut().push((span.start, error));
    }

    /// `file:line` of an offset.
    pub(super) fn place(&self, offset: usize) -> String {
        format!("{}:{}", self.file, self.line(offset))
    }

    /// The line of an offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(offset, _)| *offset);
        errors.into_iter().map(|(_, error)| error).collect()
    }

    /// The line and column of an offset, from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let before = self.text.get(self.lines[line - 1]..offset);
        (line, before.map_or(0, |text| text.chars().count()) + 1)
    }
}

/// A table of the file, with the path that leads to it.
pub(super) struct Section<'t> {
    path: String,
    span: Span,
    table: &'t DeTable<'t>,
    report: &'t Report<'t>,
}

impl<'t> Section<'t> {
    /// The whole document.
    pub(super) fn root(table: &'t DeTable<'t>, known: &[&str], report: &'t Report<'t>) -> Self {
        Self::new(String::new(), 0..0, table, known, report)
    }

    fn new(
        path: String,
        span: Span,
        table: &'t DeTable<'t>,
        known: &[&str],
        report: &'t Report<'t>,
    ) -> Self {
        let section = Self {
            path,
            span,
            table,
            report,
        };
        for (key, _) in table {
            if !known.contains(&key.get_ref().as_ref()) {
                section.error(key.span(), key.get_ref(), unknown_key(key.get_ref(), known));
            }
        }
        section
    }

    /// Where the section was opened.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Where `key` was given its value; where it was not, what would hold it. A dot leads into a
    /// table.
    pub(super) fn span_of(&self, key: &str) -> Span {
        let mut span = self.span();
        let mut table = Some(self.table);
        for part in key.split('.') {
            let Some(value) = table.and_then(|t| t.get(part)) else {
                break;
            };
            span = value.span();
            table = value.get_ref().as_table();
        }
        span
    }

    /// The keys that are there, each with its place.
    pub(super) fn given(&self) -> impl Iterator<Item = (&'t str, Span)> {
        let keys = self.table.keys();
        keys.map(|key| (key.get_ref().as_ref(), key.span()))
    }

    /// Whether `key` holds an array of nothing.
    pub(super) fn is_empty_array(&self, key: &str) -> bool {
        let value = self.table.get(key).and_then(|v| v.get_ref().as_array());
        value.is_some_and(|items| items.is_empty())
    }

    /// The report that all sections share.
    pub(super) fn report(&self) -> &'t Report<'t> {
        self.report
    }

    /// Records that `key` of this section is wrong; an empty key means the section itself.
    pub(super) fn error(&self, span: Span, key: &str, problem: impl Into<String>) {
        let key = match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        };
        self.report.error(span, &key, problem);
    }

    /// Whether `key` is given, well or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records the absence of a key that must be there.
    pub(super) fn require(&self, key: &str, example: &str) {
        self.require_written(key, &format!("\"{example}\""));
    }

    /// The same of one whose value is a number.
    pub(super) fn require_number(&self, key: &str, example: u32) {
        self.require_written(key, &example.to_string());
    }

    fn require_written(&self, key: &str, example: &str) {
        if !self.has(key) {
            let problem = format!("missing: write {key} = {example}");
            self.error(self.span(), key, problem);
        }
    }

    /// The string at `key`, through `parse`.
    pub(super) fn value<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let value = self.table.get(key)?;
        let text = self.string(key, value)?;
        match parse(text.get_ref()) {
            Ok(parsed) => Some(Located::new(text.span(), parsed)),
            Err(problem) => {
                self.error(text.span(), key, problem);
                None
            }
        }
    }

    /// The string or the whole number at `key`, as decimal digits, through `parse`.
    pub(super) fn text_or_number<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let value = self.table.get(key)?;
        let text = match (value.get_ref().as_str(), value.get_ref().as_integer()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(number)) => i128::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            (None, None) => return self.wrong_type(key, value, "a string in quotes or a number"),
        };
        match parse(&text) {
            Ok(parsed) => Some(Located::new(value.span(), parsed)),
            Err(problem) => {
                self.error(value.span(), key, problem);
                None
            }
        }
    }

    /// The string at `key`, whatever it says.
    pub(super) fn text(&self, key: &str) -> Option<Located<String>> {
        self.value(key, |text| Ok(text.to_owned()))
    }

    /// True or false, at `key`.
    pub(super) fn boolean(&self, key: &str) -> Option<Located<bool>> {
        let value = self.table.get(key)?;
        match value.get_ref().as_bool() {
            Some(given) => Some(Located::new(value.span(), given)),
            None => self.wrong_type(key, value, "true or false"),
        }
    }

    /// The names and strings of the table at `key`; none where it is absent.
    pub(super) fn pairs(&self, key: &str) -> Vec<(&'t str, Located<&'t str>)> {
        let Some(value) = self.table.get(key) else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            return self
                .wrong_type(key, value, "a table of strings")
                .unwrap_or_default();
        };
        let pair = |(name, value): (&'t Spanned<_>, &'t Spanned<DeValue<'t>>)| {
            let name: &'t std::borrow::Cow<'t, str> = name.get_ref();
            let text = self.string(&format!("{key}.{name}"), value)?;
            Some((name.as_ref(), text))
        };
        table.iter().filter_map(pair).collect()
    }

    /// The value named at `key`, one of a few; `what` they are.
    pub(super) fn choice<T: ValueEnum>(&self, key: &str, what: &str) -> Option<Located<T>> {
        self.value(key, |text| {
            T::from_str(text, false).map_err(|_| {
                let problem = format!("`{}` is not {what}", text.escape_debug());
                format!("{problem}: use {}", names::<T>())
            })
        })
    }

    /// The integer at `key`, within its bounds.
    pub(super) fn integer<T: TryFrom<i64>>(
        &self,
        key: &str,
        min: i64,
        max: i64,
    ) -> Option<Located<T>> {
        let value = self.table.get(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            return self.wrong_type(key, value, "a number");
        };
        let parsed = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let parsed = parsed.filter(|number| (min..=max).contains(number));
        match parsed.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(Located::new(value.span(), number)),
            None => {
                let problem = format!("{integer} is out of range: {min} to {max}");
                self.error(value.span(), key, problem);
                None
            }
        }
    }

    /// The strings of the array at `key`; none where it is absent.
    pub(super) fn strings(&self, key: &str) -> Vec<Located<&'t str>> {
        let items = self.array(key, "an array of strings");
        items
            .iter()
            .filter_map(|item| self.string(key, item))
            .collect()
    }

    /// The same; nothing unless all of it is strings.
    pub(super) fn all_strings(&self, key: &str) -> Option<Vec<Located<&'t str>>> {
        let Some(value) = self.table.get(key) else {
            return Some(Vec::new());
        };
        let Some(items) = value.get_ref().as_array() else {
            return self.wrong_type(key, value, "an array of strings");
        };
        items.iter().map(|item| self.string(key, item)).collect()
    }

    /// The table at `key`.
    pub(super) fn section(&self, key: &str, known: &[&str]) -> Option<Section<'t>> {
        let value = self.table.get(key)?;
        self.open(key, key, value, known)
    }

    /// The tables of the array at `key`, as `[[key]]` makes it; none where it is absent.
    pub(super) fn sections(&self, key: &str, known: &[&str]) -> Vec<Section<'t>> {
        let items = self.array(key, "an array of tables, each opened by its [[header]]");
        let open = |(index, item)| self.open(key, &format!("{key}[{index}]"), item, known);
        items.iter().enumerate().filter_map(open).collect()
    }

    fn open(
        &self,
        key: &str,
        name: &str,
        value: &'t Spanned<DeValue<'t>>,
        known: &[&str],
    ) -> Option<Section<'t>> {
        let Some(table) = value.get_ref().as_table() else {
            return self.wrong_type(key, value, "a table");
        };
        let path = match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        Some(Section::new(path, value.span(), table, known, self.report))
    }

    fn array(&self, key: &str, wanted: &str) -> &'t [Spanned<DeValue<'t>>] {
        let Some(value) = self.table.get(key) else {
            return &[];
        };
        match value.get_ref().as_array() {
            Some(items) => items,
            None => self.wrong_type(key, value, wanted).unwrap_or_default(),
        }
    }

    fn string(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Option<Located<&'t str>> {
        match value.get_ref().as_str() {
            Some(text) => Some(Located::new(value.span(), text)),
            None => self.wrong_type(key, value, "a string in quotes"),
        }
    }

    fn wrong_type<T>(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.error(
            value.span(),
            key,
            format!("expected {wanted}, found {found}"),
        );
        None
    }
}

/// The values that `T` can have, in quotes.
fn names<T: ValueEnum>() -> String {
    let names = T::value_variants().iter().cloned().map(name_of);
    let names: Vec<_> = names.map(|name| format!("\"{name}\"")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    let distance = |candidate: &&str| strsim::damerau_levenshtein(key, candidate);
    match known.iter().copied().min_by_key(distance) {
        Some(nearest) if distance(&nearest) <= (nearest.len() / 3).max(1) => {
            format!("unknown key: did you mean `{nearest}`?")
        }
        _ => format!("unknown key: here can be {}", known.join(", ")),
    }
}
