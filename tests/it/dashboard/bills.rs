//! What a bill and a dispute about it need, as pages show it.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime, Time};

use super::money::{shown, words};
use super::page;
use crate::harness::{Client, Host, Purse, before_the_hour, nanos, text};

async fn ask(customer: &Client) -> Value {
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", body).await.expect(200)
}

async fn see(client: &Client, path: &str) -> String {
    page(client.get(path).await, 200)
}

/// The piece of a page between these.
#[track_caller]
fn between<'a>(page: &'a str, start: &str, end: &str) -> &'a str {
    let after = page.split_once(start).map(|(_, after)| after);
    let found = after.and_then(|after| after.split_once(end));
    found.unwrap_or_else(|| panic!("no {start} in {page}")).0
}

/// The text of each cell of a section's table.
#[track_caller]
fn rows(page: &str, section: &str) -> Vec<Vec<String>> {
    let section = between(page, &format!("<section id=\"{section}\">"), "</section>");
    let body = between(section, "<tbody>", "</tbody>");
    let rows = body.split("<tr").skip(1);
    rows.map(|row| {
        let cells = row.split("<td").skip(1);
        cells.map(|cell| words(&format!("<td{cell}"))).collect()
    })
    .collect()
}

/// Where the link with this text leads to, without its place on the page.
fn link(page: &str, text: &str) -> Option<String> {
    let (before, _) = page.split_once(&format!("\">{text}</a>"))?;
    let (_, path) = before.rsplit_once("href=\"")?;
    let path = path.split(['"', '#']).next().unwrap_or_default();
    Some(path.replace("&amp;", "&"))
}

fn number(text: &str) -> i64 {
    text.replace(',', "").parse().expect("a number")
}

/// Dollars as pages have them, in nano-dollars.
fn dollars(text: &str) -> i64 {
    let number: f64 = text.replace('$', "").parse().expect("dollars");
    (number * 1e9).round() as i64
}

#[tokio::test]
async fn deleted_customers_are_in_the_sums_and_have_their_pages() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    let (gone, living) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let also_gone = Purse::postpaid(&host).await;
    for purse in [&gone, &also_gone, &also_gone, &living, &living, &living] {
        ask(&purse.customer).await;
    }
    assert!(
        !see(&admin, "/dashboard")
            .await
            .contains("Deleted customers")
    );
    for purse in [&gone, &also_gone] {
        admin.delete(&purse.path("")).await.expect(204);
    }
    let text = see(&admin, "/dashboard").await;
    let found = rows(&text, "customers");
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!(found[1][1], "Deleted customers");
    assert_eq!(number(&found[1][3]), 3);
    let all = admin.get("/usage").await.expect(200)["totals"].take();
    let sum = |column: usize| found.iter().map(|row| number(&row[column])).sum::<i64>();
    assert_eq!(json!(sum(3)), all["requests"]);
    assert_eq!(json!(sum(4)), all["prompt_tokens"]);
    assert_eq!(json!(sum(5)), all["completion_tokens"]);
    let sum = |column: usize| found.iter().map(|row| dollars(&row[column])).sum::<i64>();
    assert_eq!(sum(6), nanos(&all["cost"]));
    assert_eq!(sum(7), -nanos(&all["cost"]));

    // from there to each of them
    let list = link(&text, "Deleted customers").expect("a link");
    let text = see(&admin, &list).await;
    let found = rows(&text, "customers");
    let ids: Vec<_> = found.iter().map(|row| number(&row[0])).collect();
    assert_eq!(ids, [gone.id, also_gone.id]);
    assert_eq!(
        link(&text, "Those that there are").as_deref(),
        Some("/dashboard?after=0&month=all")
    );
    let own = gone.path("").replace("customers", "dashboard");
    let text = see(&admin, &own).await;
    let about = words(between(&text, "</h1>", "</p>"));
    assert!(about.contains("deleted on 20"), "{about}");
    assert!(!text.contains("Create a key"), "{text}");
    let balance = admin.get(&gone.path("")).await.expect(200)["balance"].take();
    let shown = shown(-nanos(&balance));
    assert!(
        words(&text).contains(&format!("Balance -{shown}")),
        "{text}"
    );
    assert!(!see(&admin, "/dashboard/2").await.contains("deleted on"));
    page(admin.get(&format!("{own}/keys/new")).await, 404);
}

/// The first moment of this month and of the one before, in milliseconds since 1970; a
/// request of now says when that is.
async fn months(customer: &Client) -> (i64, i64) {
    let rows = customer.get("/usage/requests").await.expect(200);
    let at = rows["requests"][0]["created_at"].as_str().expect("a time");
    let at = OffsetDateTime::parse(at, &Rfc3339).expect("a time");
    let first = |at: OffsetDateTime| {
        let first = at.replace_time(Time::MIDNIGHT).replace_day(1);
        first.expect("a day")
    };
    let this = first(at);
    let last = first(this - Duration::DAY);
    (this.unix_timestamp() * 1000, last.unix_timestamp() * 1000)
}

#[tokio::test]
async fn this_month_and_the_last_are_shown_by_themselves() {
    const HOUR: i64 = 60 * 60 * 1000;
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    before_the_hour().await;
    let mut purses = Vec::new();
    for requests in 1..=4 {
        let purse = Purse::postpaid(&host).await;
        for _ in 0..requests {
            ask(&purse.customer).await;
        }
        purses.push(purse);
    }
    admin.delete(&purses[3].path("")).await.expect(204);
    let (this, last) = months(&purses[0].customer).await;
    let database = host.database();
    for (customer, start) in [(1, last - HOUR), (2, last), (3, this), (4, this - HOUR)] {
        let sql = format!(
            "UPDATE usage_sums SET start = {start} \
             WHERE period = 'hour' AND customer_id = {customer}"
        );
        database.execute(&sql).await.expect("moved");
    }
    for (title, expected) in [
        ("All time", [1, 2, 3, 4]),
        ("This month", [0, 0, 3, 0]),
        ("Last month", [0, 2, 0, 4]),
    ] {
        let start = see(&admin, "/dashboard").await;
        let months = between(&start, "<nav id=\"month\"", "</nav>");
        let named = months.split("\">").find(|text| text.starts_with(title));
        let name = named.expect("a link").split('<').next().expect("a name");
        let path = link(&start, name).expect("a link");
        let text = see(&admin, &path).await;
        let found = rows(&text, "customers");
        let found: Vec<_> = found.iter().map(|row| number(&row[3])).collect();
        assert_eq!(found, expected, "{title}");
        let total = words(between(&text, "id=\"total-requests\">", "<"));
        assert_eq!(number(&total), expected.iter().sum::<i64>(), "{title}");
        for (purse, requests) in purses.iter().zip(expected) {
            let own = purse.path("").replace("customers", "dashboard");
            let own = see(&admin, &own).await;
            let path = link(&own, name).expect("a link");
            let own = see(&admin, &path).await;
            let total = words(between(&own, "id=\"total-requests\">", "<"));
            assert_eq!(number(&total), requests, "{title}");
            if requests > 0 {
                assert_eq!(number(&rows(&own, "usage")[0][1]), requests, "{title}");
            }
        }
    }
}

#[tokio::test]
async fn requests_are_shown_with_id_and_key_and_back_to_the_first() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    let first = host.customer().await;
    let new = json!({ "customer_id": 1, "name": "Second", "rate_limit": 100_000 });
    let second = admin.post("/api/keys", new).await.expect(201);
    let second = second["key"].as_str().expect("a key").to_owned();
    let second = host.anyone().with_header("x-api-key", second);
    let mut asked = Vec::new();
    for number in 0..25 {
        let key = if number % 2 == 0 { &first } else { &second };
        let id = ask(key).await["request_id"].take();
        let name = if number % 2 == 0 { "Key" } else { "Second" };
        let key = format!("{name} {}_…", &key.key()[.."mhk_12345678".len()]);
        asked.push([id.as_str().expect("an id").to_owned(), key]);
    }
    asked.reverse();
    // what was asked with a key is shown with it when it is gone
    admin.delete("/api/keys/2").await.expect(204);
    let found = |page: &str| -> Vec<_> {
        let rows = rows(page, "requests");
        rows.iter()
            .map(|row| [row[1].clone(), row[2].clone()])
            .collect()
    };
    for viewer in [&admin, &first] {
        let latest = see(viewer, "/dashboard/1?month=this&paused=true").await;
        assert_eq!(found(&latest), asked[..20]);
        assert_eq!(link(&latest, "Latest requests"), None);
        let path = link(&latest, "Earlier requests").expect("a link");
        assert!(
            path.contains("month=this") && path.contains("paused=true"),
            "{path}"
        );
        let earlier = see(viewer, &path).await;
        assert_eq!(found(&earlier), asked[20..]);
        assert_eq!(link(&earlier, "Earlier requests"), None);
        let path = link(&earlier, "Latest requests").expect("a link");
        assert_eq!(found(&see(viewer, &path).await), asked[..20]);
    }
}

#[tokio::test]
async fn payments_are_shown_with_their_references() {
    let host = Host::start().await.ready().await;
    let (purse, other) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let admin = host.admin();
    ask(&purse.customer).await;
    assert!(words(&see(&admin, "/dashboard/1").await).contains("payments No payment."));
    let mut booked = Vec::new();
    // two pages, and no third
    for number in 1..=40_i64 {
        // each third is taken back
        let (sign, kind) = match number % 3 {
            0 => ("-", "correction"),
            _ => ("", "top up"),
        };
        let reference = format!("<invoice> {number}");
        let amount = format!("{sign}{}", text(number));
        let body = json!({ "amount": amount, "reference": reference });
        admin.post(&purse.path("/credit"), body).await.expect(201);
        let body = json!({ "amount": amount, "reference": format!("of another {number}") });
        admin.post(&other.path("/credit"), body).await.expect(201);
        let reference = format!("&lt;invoice&gt; {number}");
        booked.push([
            kind.to_owned(),
            reference,
            format!("{sign}{}", shown(number)),
        ]);
    }
    booked.reverse();
    let found = |page: &str| -> Vec<_> {
        let rows = rows(page, "payments");
        rows.iter()
            .map(|row| [row[1].clone(), row[2].clone(), row[3].clone()])
            .collect()
    };
    for viewer in [&admin, &purse.customer] {
        let latest = see(viewer, "/dashboard/1").await;
        assert_eq!(found(&latest), booked[..20]);
        let path = link(&latest, "Earlier payments").expect("a link");
        let earlier = see(viewer, &path).await;
        assert_eq!(found(&earlier), booked[20..]);
        assert_eq!(link(&earlier, "Earlier payments"), None);
        let path = link(&earlier, "Latest payments").expect("a link");
        assert_eq!(found(&see(viewer, &path).await), booked[..20]);
    }
}
