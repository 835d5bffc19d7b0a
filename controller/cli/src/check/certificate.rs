//! How long CAs still hold.

use x509_parser::pem::Pem;

use crate::finding::Finding;

/// The leader replaces its CA 30 days before it ends; with fewer days left, that has failed.
const LATE: i64 = 14 * 86_400;

/// The certificates of a bundle in PEM, at a time in seconds since 1970.
pub(super) fn judge(about: &str, pem: &str, now: i64) -> Finding {
    let mut ends = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        match block
            .as_ref()
            .map(|block| block.parse_x509().map(|certificate| certificate.validity().not_after.timestamp()))
        {
            Ok(Ok(end)) => ends.push(end),
            Ok(Err(error)) => return unreadable(about, &error.to_string()),
            Err(error) => return unreadable(about, &error.to_string()),
        }
    }
    match ends.iter().max() {
        None => unreadable(about, "it has no certificate"),
        Some(&last) => expiry(about, last, now),
    }
}

/// The newest certificate's end.
pub(super) fn expiry(about: &str, end: i64, now: i64) -> Finding {
    let left = (end - now) / 86_400;
    let remedy = "the leader replaces it: its log says why it can't; docs/troubleshooting.md has more";
    if end <= now {
        return Finding::error(about, format!("the CA ended {} days ago", -left), remedy);
    }
    if end - now < LATE {
        return Finding::warning(about, format!("the CA ends in {left} days"), remedy);
    }
    Finding::ok(about, format!("the CA holds for {left} days more"))
}

fn unreadable(about: &str, why: &str) -> Finding {
    Finding::error(about, format!("its ca.crt can't be read: {why}"), "delete the ConfigMap: the leader writes it anew")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn a_ca_that_was_not_replaced_in_time_is_told() {
        let of = |left: i64| expiry("ca", 1_000_000_000 + left, 1_000_000_000).level;
        assert_eq!((of(LATE), of(LATE - 1), of(0)), (Level::Ok, Level::Warning, Level::Error));
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        for pem in ["", "none", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert_eq!(judge("ca", pem, 0).level, Level::Error, "{pem}");
        }
    }
}
