//! Sources of files: HTTP requests and what their responses have to state, and files of this device.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue,
    IF_RANGE, LAST_MODIFIED, LOCATION, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use reqwest::{Client, Response, StatusCode, Url};
use tokio_util::sync::CancellationToken;

use super::ModelStore;
use super::fault::ModelFault;
use super::part::PartFile;
use crate::catalog::addresses::AddressRule;
use crate::catalog::model::ModelFileEntry;
use crate::catalog::url::without_secrets;
use crate::clock;
use crate::limits::models::{DOWNLOAD_REDIRECTS_MAX, DOWNLOAD_ROOM_EVERY_BYTES, MODEL_READ_BYTES};
use crate::net::client;
use crate::net::client::is_loopback;

/// How an attempt failed, and what may follow.
#[derive(Debug)]
pub(super) struct AttemptFault {
    pub(super) fault: ModelFault,
    pub(super) next: NextAttempt,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextAttempt {
    /// Nothing: it would fail in the same way.
    None,
    /// One that goes on where this ended; this was no failure.
    Now,
    /// One from where this ended, after this time if the server states one.
    After(Option<Duration>),
    /// One from the first byte.
    FromZero,
}

impl AttemptFault {
    pub(super) fn again(why: impl Into<String>) -> AttemptFault {
        let fault = ModelFault::Unreachable(why.into());
        AttemptFault { fault, next: NextAttempt::After(None) }
    }

    /// The board has become too warm.
    pub(super) fn paused() -> AttemptFault {
        let fault = ModelFault::Unreachable("the board is too warm".to_owned());
        AttemptFault { fault, next: NextAttempt::Now }
    }

    pub(super) fn last(fault: ModelFault) -> AttemptFault {
        AttemptFault { fault, next: NextAttempt::None }
    }

    fn refused(why: String) -> AttemptFault {
        AttemptFault::last(ModelFault::Refused(why))
    }
}

/// What the head of a response states.
#[derive(Debug)]
pub(super) struct ResponseHead {
    /// The response begins with the first byte of the file.
    pub(super) is_from_zero: bool,
    /// The version of the file, for `If-Range`.
    pub(super) version: Option<String>,
}

/// A client for the host of this URL, which speaks HTTP/1.1: one stream has no use of HTTP/2, and its
/// flow control would bound the rate.
///
/// # Errors
/// If the certificates can't be used, or the rule does not permit the URL.
pub(super) fn client(
    url: &Url,
    ca: Option<&str>,
    addresses: &AddressRule,
) -> Result<Client, ModelFault> {
    let built = client::trusting(url, addresses, ca, &[b"http/1.1"])
        .map_err(ModelFault::Refused)?
        .user_agent(concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
        .build();
    built.map_err(|e| ModelFault::Refused(format!("the HTTP client cannot be created: {}", why(e))))
}

/// Asks for what the part lacks. Redirects are followed to encrypted hosts only; the digest of the file,
/// not the host, vouches for the content. The address rule of the file holds for each host.
pub(super) async fn request(
    client: &Client,
    first: &Url,
    part: &PartFile,
    ca: Option<&str>,
) -> Result<Response, AttemptFault> {
    let addresses = &part.entry().addresses;
    let (mut url, mut client) = (first.clone(), client.clone());
    for _ in 0..=DOWNLOAD_REDIRECTS_MAX {
        let mut request = client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if part.len() > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.len()));
            if let Some(version) = part.version_at(first.as_str()) {
                request = request.header(IF_RANGE, version);
            }
        }
        let response = request.send().await.map_err(|error| match client::not_public(&error) {
            Some(why) => AttemptFault::refused(why),
            None => AttemptFault::again(why(error)),
        })?;
        let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
        if !is_redirect {
            return Ok(response);
        }
        let to = redirected(&url, response.headers()).map_err(AttemptFault::refused)?;
        if to.origin() != url.origin() && *addresses != AddressRule::Any {
            client = self::client(&to, ca, addresses).map_err(AttemptFault::last)?;
        }
        url = to;
    }
    let host = shown(first);
    Err(AttemptFault::refused(format!(
        "{host} redirects more than {DOWNLOAD_REDIRECTS_MAX} times; state the last URL as source"
    )))
}

fn redirected(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let to = location.and_then(|location| from.join(location).ok());
    let to = to.ok_or_else(|| format!("{} redirects to no URL", shown(from)))?;
    let is_local = |url: &Url| url.scheme() == "http" && url.host_str().is_some_and(is_loopback);
    if to.scheme() == "https" || (is_local(from) && is_local(&to)) {
        return Ok(to);
    }
    Err(format!(
        "{} redirects to {}, which is not encrypted: only https:// is followed",
        shown(from),
        shown(&to)
    ))
}

/// A URL without the places of secrets.
fn shown(url: &Url) -> String {
    without_secrets(url.as_str())
}

/// Checks that the body of a response is what the part lacks, or the whole file.
///
/// `known` is the version of the part.
pub(super) fn check_head(
    response: &Response,
    part: &PartFile,
    known: Option<&str>,
) -> Result<ResponseHead, AttemptFault> {
    let (status, headers, entry) = (response.status(), response.headers(), part.entry());
    let host = shown(response.url());
    let number = |name| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let total = content_range(headers).and_then(|range| range.total);
    let other_length = total.filter(|total| *total != entry.bytes);
    if let (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, Some(total)) =
        (status, other_length)
    {
        return Err(wrong_length(entry, format!("{host} has {total} bytes")));
    }
    let encoding = headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes);
    let version = version_of(headers);
    match status {
        StatusCode::PARTIAL_CONTENT if part.len() > 0 => {
            let is_next =
                content_range(headers).is_some_and(|range| range.first == Some(part.len()));
            let is_other = known.zip(version.as_deref()).is_some_and(|(known, is)| known != is);
            if !is_next || is_other {
                let fault =
                    ModelFault::Unreachable(format!("{host} sends another part than asked for"));
                return Err(AttemptFault { fault, next: NextAttempt::FromZero });
            }
        }
        StatusCode::OK => {
            let stated = number(CONTENT_LENGTH).filter(|stated| *stated != entry.bytes);
            if let Some(stated) = stated {
                return Err(wrong_length(entry, format!("{host} sends {stated} bytes")));
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if part.len() > 0 => {
            let fault = ModelFault::Unreachable(format!("{host} refuses to go on ({status})"));
            return Err(AttemptFault { fault, next: NextAttempt::FromZero });
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => {
            return Err(later(&host, status, headers));
        }
        status if status.is_server_error() => return Err(later(&host, status, headers)),
        status => {
            let what = match status.as_u16() {
                401 | 403 => "it needs a login or a licence that was accepted; use another source",
                404 | 410 => "there is no such file; correct the source",
                _ => "correct the source",
            };
            return Err(AttemptFault::refused(format!("{host}: {status}: {what}")));
        }
    }
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case(b"identity")) {
        return Err(AttemptFault::refused(format!(
            "{host} sends an encoded file: use another source"
        )));
    }
    Ok(ResponseHead { is_from_zero: status == StatusCode::OK, version })
}

/// The end of a body that lacks so many bytes.
pub(super) fn check_end(
    response: &Response,
    entry: &ModelFileEntry,
    missing: u64,
) -> Result<(), AttemptFault> {
    if missing == 0 {
        return Ok(());
    }
    let found = format!("the source ends after {} bytes", entry.bytes - missing);
    // without chunks and length, the end may be that of a lost connection
    if response.headers().contains_key(TRANSFER_ENCODING) {
        return Err(wrong_length(entry, found));
    }
    Err(AttemptFault::again(found))
}

pub(super) fn wrong_length(entry: &ModelFileEntry, found: String) -> AttemptFault {
    let ModelFileEntry { path: file, bytes: expected, .. } = entry.clone();
    AttemptFault::last(ModelFault::WrongLength { file, expected, found })
}

fn later(host: &str, status: StatusCode, headers: &HeaderMap) -> AttemptFault {
    let wait = retry_after(headers);
    let when = wait.map_or(String::new(), |wait| format!(", for {} s", wait.as_secs()));
    let fault = ModelFault::Unreachable(format!("{host}: {status}{when}"));
    AttemptFault { fault, next: NextAttempt::After(wait) }
}

/// The time of `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(clock::time_of_day()).unwrap_or_default())
}

/// The strong entity tag, else the time of modification.
fn version_of(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| tag.starts_with('"')).or_else(|| text(LAST_MODIFIED))
}

/// `Content-Range` (RFC 9110, section 14.4).
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    first: Option<u64>,
    total: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-').and_then(|(first, _)| first.trim().parse().ok());
    Some(ContentRange { first, total: total.trim().parse().ok() })
}

/// An error and its causes, without the URL, which may hold a key.
pub(super) fn why(error: reqwest::Error) -> String {
    let host = error.url().and_then(|url| url.host_str()).map(str::to_owned);
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    // bounded by the causes of one error
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    match host {
        Some(host) => format!("{host}: {text}"),
        None => text,
    }
}

/// Copies a file of this device into the part, from its first byte.
///
/// # Errors
/// If the file has another length or can't be read, the disk has no room, or `cancel` is cancelled.
pub(super) fn copy(
    mut part: PartFile,
    path: &Path,
    store: &ModelStore,
    cancel: &CancellationToken,
    told: impl Fn(u64),
) -> Result<PartFile, ModelFault> {
    let broken = |e: std::io::Error| ModelFault::file(path, &e);
    // a pipe would never be opened
    if !std::fs::metadata(path).map_err(broken)?.is_file() {
        return Err(ModelFault::file(path, &"it is no file"));
    }
    let mut from = File::open(path).map_err(broken)?;
    let length = from.metadata().map_err(broken)?.len();
    let bytes = part.entry().bytes;
    if length != bytes {
        let found = format!("{} has {length} bytes", path.display());
        return Err(wrong_length(part.entry(), found).fault);
    }
    part.restart()?;
    store.check_room(bytes)?;
    let mut buffer = vec![0; MODEL_READ_BYTES];
    // bounded by `bytes`
    while part.missing() > 0 {
        if cancel.is_cancelled() {
            return Err(ModelFault::Cancelled);
        }
        let wanted = usize::try_from(part.missing()).unwrap_or(usize::MAX).min(buffer.len());
        let read = from.read(&mut buffer[..wanted]).map_err(broken)?;
        if read == 0 {
            return Err(ModelFault::file(path, &"it became shorter while it was copied"));
        }
        part.write(&buffer[..read])?;
        if part.len() % DOWNLOAD_ROOM_EVERY_BYTES < read as u64 {
            store.check_room(part.missing())?;
        }
        told(part.len());
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn ranges_of_responses() {
        for (value, expected) in [
            ("bytes 5-9/10", Some((Some(5), Some(10)))),
            ("bytes 5-9/*", Some((Some(5), None))),
            ("bytes */10", Some((None, Some(10)))),
            ("bytes 99999999999999999999-1/10", Some((None, Some(10)))),
            ("items 5-9/10", None),
            ("bytes 5-9", None),
        ] {
            let found = content_range(&headers("content-range", value));
            assert_eq!(found.map(|range| (range.first, range.total)), expected, "{value}");
        }
    }

    #[test]
    fn only_encrypted_redirects_are_followed() {
        for (from, to, expected) in [
            ("https://h/a", "https://cdn/b", Some("https://cdn/b")),
            ("https://h/a", "/b", Some("https://h/b")),
            ("https://h/a", "http://h/b", None),
            ("https://h/a", "http://127.0.0.1/b", None),
            ("https://h/a", "file:///etc/passwd", None),
            ("https://h/a", "ftp://h/b", None),
            ("http://127.0.0.1:1/a", "/b", Some("http://127.0.0.1:1/b")),
            ("http://127.0.0.1:1/a", "http://h/b", None),
            ("http://127.0.0.1:1/a", "https://h/b", Some("https://h/b")),
            ("https://h/a", "http://[", None),
        ] {
            let found = redirected(&Url::parse(from).unwrap(), &headers("location", to)).ok();
            assert_eq!(found.as_ref().map(Url::as_str), expected, "{from} {to}");
        }
        assert!(redirected(&Url::parse("https://h/a").unwrap(), &HeaderMap::new()).is_err());
    }

    #[test]
    fn only_a_strong_version_is_compared() {
        assert_eq!(version_of(&headers("etag", "\"a\"")).as_deref(), Some("\"a\""));
        assert_eq!(version_of(&headers("etag", "W/\"a\"")), None);
        assert_eq!(version_of(&headers("last-modified", "x")).as_deref(), Some("x"));
    }
}
