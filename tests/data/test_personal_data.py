"""Personal data: what must be found, what must not, and that masking is done once and for all."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import corpora
from pipeline.data.cleaning.personal_data import KINDS, MASKS, find, is_chinese_id, mask, passes_luhn

JWT = ".".join(
    base64.urlsafe_b64encode(part).rstrip(b"=").decode()
    for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890"}', bytes(range(32)))
)
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75\nabcd+/==\n-----END RSA PRIVATE KEY-----"
ANY = (*KINDS, "any_bank_card")  # a bare number too, without a word that speaks of cards
VALID = [
    ("email", "zhang.san+1@mail.example.com"),
    ("email", "a@b.cn"),
    ("phone", "+44 20 7946 0958"),
    ("phone", "+8613812345678"),
    ("phone", "13812345678"),
    ("phone", "138-1234-5678"),
    ("phone", "010-87654321"),
    ("phone", "(212) 555-0123"),
    ("phone", "555-123-4567"),
    ("chinese_id", "11010519491231002X"),
    ("chinese_id", "11010519491231002x"),
    ("bank_card", "4111111111111111"),
    ("bank_card", "4111 1111 1111 1111"),
    ("bank_card", "5500-0000-0000-0004"),
    ("bank_card", "378282246310005"),
    ("bank_card", "6222020000000000000"),
    ("secret", "sk-proj-Ab12Cd34Ef56Gh78Ij90"),
    ("secret", "ghp_" + "a1B2" * 9),
    ("secret", "github_pat_" + "11ABCDEFG0abcdefghijkl"),
    ("secret", "AKIAIOSFODNN7EXAMPLE"),
    ("secret", "AIza" + "Sy0123456789abcdefghijklmnopqrstuvw"[:35]),
    ("secret", "xoxb-123456789012-abcdefABCDEF"),
    ("secret", "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567"),
    ("secret", "glpat-abcDEF123456ghiJKL78"),
    ("secret", JWT),
    ("secret", PEM),
    ("ip_address", "203.0.113.7"),
    ("ip_address", "2001:db8::8a2e:370:7334"),
]


@pytest.mark.parametrize(("kind", "item"), VALID)
def test_an_item_is_found_and_masked(kind: str, item: str) -> None:
    text = f"Here: {item}."
    assert find(text, ANY) == [(kind, 6, 6 + len(item))]
    assert mask(text, ANY) == (f"Here: {MASKS[kind]}.", {kind: 1})


SURROUNDINGS = st.sampled_from(
    [
        "",
        " ",
        "，",
        "。",
        "：",
        "（",
        "“",
        "是",
        "联系人张三",
        "我的号码",
        "see ",
        "contact me, ",
        "\n",
        "\t",
        "(",
        '"',
        "'",
        "<",
        " - ",
        "**",
    ]
)


@given(item=st.sampled_from(VALID), before=SURROUNDINGS, after=SURROUNDINGS)
def test_an_item_is_found_between_chinese_latin_and_punctuation(item: tuple[str, str], before: str, after: str) -> None:
    kind, value = item
    after = after if not after[:1].isascii() or not after[:1].isalpha() else f" {after}"
    masked, counts = mask(f"{before}{value}{after}", ANY)
    assert masked == f"{before}{MASKS[kind]}{after}"
    assert counts == {kind: 1}


@given(
    st.lists(st.one_of(st.sampled_from([item for _, item in VALID]), SURROUNDINGS, st.text(max_size=12)), max_size=8)
)
def test_masking_twice_changes_nothing(parts: list[str]) -> None:
    for kinds in (KINDS, ANY):
        once, _ = mask("".join(parts), kinds)
        assert mask(once, kinds) == (once, {})
        assert find(once, kinds) == []


@given(st.text(alphabet="0123456789.,-+ ()@:/=*abkps密码电话", max_size=80))
def test_spans_lie_inside_and_never_overlap(text: str) -> None:
    position = 0
    for kind, start, end in find(text):
        assert kind in KINDS
        assert position <= start < end <= len(text)
        position = end


@given(st.integers(0, 9), st.integers(0, 16))
def test_an_identity_number_with_one_wrong_digit_is_none(digit: int, place: int) -> None:
    number = "11010519491231002X"
    changed = number[:place] + str(digit) + number[place + 1 :]
    assert is_chinese_id(changed) == (changed == number)  # ISO 7064 MOD 11-2 finds every single error
    assert ("[CHINESE_ID]" in mask(f"身份证{changed}")[0]) == (changed == number)


@given(st.integers(0, 9), st.integers(1, 15))
def test_a_card_number_with_one_wrong_digit_is_none(digit: int, place: int) -> None:
    number = "4539578763621486"
    changed = number[:place] + str(digit) + number[place + 1 :]
    assert passes_luhn(changed) == (changed == number)
    assert ("[BANK_CARD]" in mask(f"卡号{changed}。")[0]) == (changed == number)


@pytest.mark.parametrize(
    "text",
    [
        "15000000000 / 3 = 5000000000",
        "x = 13812345678, so x is odd",
        "$13812345678 in total",
        "\\boxed{4539578763621486}",
        "3 × 13812345678",
        "the sum is 17 + 13812345678",
        "2^53 = 9007199254740992",
        "3.14159265358979323846264338",
        "0.4111111111111111",
        "1,234,567,890,123",
        "The answer is 13812345678.",
        "**Answer: 13812345678**",
        "答案是13812345678",
        "so the product equals 13812345678",
        "f(x) = 13812345678",
        "订单号：13812345678",
        "Your order number is 13812345678",
        "Order #13812345678",
        "ORD-13812345678",
        "ISO 8601: 2023-11-15T10:30:00, ISBN 978-0-306-40615-7",
        "Timestamps: 1700000000 and 1700000000000 and 20231115103000",
        "phone: 2023-11-15",
        "4111111111111112",  # Luhn
        "9999999999999995",  # Luhn holds, no issuer
        "110105194913310020",  # month 13
        "110105491231002",  # the old 15 digits need a word
        "x@self.weight and a@b.mean() and x@y.to(device), @dataclass",
        "git clone git@github.com:someone/repo.git",
        "v1.2.3.4, version 10.0.1.2, 127.0.0.1, mask 255.255.255.0, 300.1.1.1",
        "std::vector::iterator at 12:30:45",
        "max_tokens: 4096, token: abc, the secret: be kind, keyword = value",
        "password = os.environ['DB_PASSWORD1']",
        'api_key = "YOUR_API_KEY_123"',
        'api_key="sk-xxxxxxxxxxxxxxxxxxxx"',
        "the password is <your password 1>",
        "a risk-averse and task-oriented-approach-to-everything",
        "eyJhbGciOi.eyJzdWIiOi.this-is-not-a-real-token",
        "The parcel 4111111111111111 left the house.",  # one number in ten passes Luhn: no word speaks of cards
        "样本编码 5500000000000004 已入库",
        "Section 10.2.3.4 of the manual; 见第 3.2.1.7 节",
        "2.1.4.3 Results",
        "Update the firmware to 172.16.2.9 first",
        "pip install tool==2.28.1.0 and nginx 1.24.0.1",
        "Call the helpline on 0800 111 999, or 116 123.",
        "In the US call the crisis line at 1-800-273-8255.",
        "全国统一客服热线：400-810-1234",
        "心理援助热线 010-82951332",
        "For example, password: river42Lamp7",
        "A strong password: tR7!vexqu2",
        "例如，密码：aX9kq2Lm",
        "password: Password123",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password: hunter2", "password: [SECRET]"),
        ("密码是abc12345。", "密码是[SECRET]。"),
        ('{"password": "aB3#fG7&kL9!"}', '{"password": "[SECRET]"}'),
        ("user=ann&password=abc12345&next=1", "user=ann&password=[SECRET]&next=1"),
        ("api_key = '9f8a7b6c5d4e3f2a'", "api_key = '[SECRET]'"),
        ("postgres://app:s3cretpw@db.example.com/x", "postgres://app:[SECRET]@db.example.com/x"),
        ("Authorization: Bearer 9f8A7b6C5d4E3f2A1b0Z", "Authorization: Bearer [SECRET]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEvQ\n", "[SECRET]"),  # cut short
        ("电话13812345678/13912345678", "电话[PHONE]/[PHONE]"),
        ("Tel: 020 7946 0958", "Tel: [PHONE]"),
        ("Tel.: 030 12345678", "Tel.: [PHONE]"),
        ("The answer is 138 1234 5678", "The answer is [PHONE]"),
        ("contact = 13812345678", "contact = [PHONE]"),
        ('phone="13812345678"', 'phone="[PHONE]"'),
        ("-----BEGIN EC PRIVATE KEY-----\na-b\n-----END EC PRIVATE KEY-----.", "[SECRET]."),
        ("身份证号码 110105491231002", "身份证号码 [CHINESE_ID]"),
        ("Write to a@b.com.Thanks", "Write to [EMAIL].Thanks"),
        ("visa card 4222222222222", "visa card [BANK_CARD]"),
        ("Charge it to 4111 1111 1111 1111, expiry 12/29", "Charge it to [BANK_CARD], expiry 12/29"),
        ("我的卡号5500000000000004", "我的卡号[BANK_CARD]"),
        ("The server 10.2.3.4 is down", "The server [IP_ADDRESS] is down"),
        ("Log in at 203.0.113.7", "Log in at [IP_ADDRESS]"),
        ("Version 2 runs on 203.0.113.7", "Version 2 runs on [IP_ADDRESS]"),
        ("My number is 212-555-0123, not the hotline", "My number is [PHONE], not the hotline"),
        ("My new password: tR7!vexqu2", "My new password: [SECRET]"),
        ("电话号码是718-0167", "电话号码是[PHONE]"),
    ],
)
def test_what_is_named_is_found(text: str, masked: str) -> None:
    assert mask(text)[0] == masked


def test_only_the_kinds_that_are_asked_for() -> None:
    text = "a@b.com, 13812345678"
    assert mask(text, ["phone"])[0] == "a@b.com, [PHONE]"
    assert find(text, []) == []


def test_an_identity_number_is_not_taken_for_a_card() -> None:
    # 18 digits, of Gansu (62, also UnionPay's prefix), with both check digits right.
    found = next(
        number
        for serial in range(1000)
        for check in "0123456789"
        if is_chinese_id(number := f"62010219900307{serial:03d}{check}") and passes_luhn(number)
    )
    assert find(found) == [("chinese_id", 0, 18)]


def test_mathematics_of_the_project_holds_none() -> None:
    for row in corpora.openmath_like(300, seed=5):
        assert find(row["generated_solution"]) == []


def test_no_personal_data_in_school_mathematics(shared_data: Path) -> None:
    lines = (shared_data / "eval/gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    hits = [text for line in lines for text in json.loads(line).values() if find(text)]
    assert len(lines) == 7473
    assert hits == []


@pytest.mark.parametrize(
    "text",
    [
        "a@" * 50_000,
        "1-" * 50_000,
        "13812345678 " * 5_000,
        "password: " * 10_000,
        "1" * 100_000,
        "-----BEGIN PRIVATE KEY-----" * 40_000,
    ],
)
def test_long_odd_texts_do_not_hang(text: str) -> None:
    masked, counts = mask(text)  # quadratic search would take minutes
    assert masked.count("[PHONE]") == counts["phone"] == text.count("13812345678")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("请联系phone: 8698103153谢谢", ["phone"]),
        ("请联系 phone: 8698103153 谢谢", ["phone"]),
        ("我的ID number: 110105491231002好", ["chinese_id"]),
        ("您的order number 13812345678已发货", []),
        ("microphone: 8698103153", []),
    ],
)
def test_an_english_word_right_after_a_chinese_character_is_a_word(text: str, kinds: list[str]) -> None:
    assert [kind for kind, _, _ in find(text, KINDS)] == kinds
