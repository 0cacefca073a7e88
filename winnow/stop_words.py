"""Words that a language's sentences are held together by, of the languages written in Latin letters that are told apart.

Data, not code: filters/languages.py tells languages by it, and those who check a run count with the same words on their own.
"""

STOP_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "the of and to in is with for on at by from this that his her their are was be an a as it its it's near over into two one "
        "three some there has have who which where through during above below beneath around along across inside outside before "
        "new old your you my our all up out off down front side under between behind next against while when how what free image photo "
        "picture view stock vector black white red blue green vintage home house day night man woman people girl boy",
        "de": "der die das und ist mit von für auf im den dem des ein eine einen einer eines zu zum zur bei aus nach über unter am auch "
        "nicht sich wie als oder vor ihr wir haus bild mann frau",
        "fr": "le la les des du un une et est avec pour sur dans au aux par en de ce cette ces qui que son sa ses plus ou nous vous "
        "maison homme femme près sous d l",
        "es": "el la los las de del un una y es con para por en al su sus que se como más o esta este sobre entre desde hasta casa hombre "
        "mujer imagen foto junto",
        "pt": "o a os as de do da dos das um uma e é com para por em no na nos nas ao à que se como mais ou sua seu sobre entre casa homem "
        "mulher imagem foto",
        "it": "il lo la i gli le di del della dei delle un uno una e è con per in nel nella sul sulla al alla da che si come più o casa "
        "uomo donna foto",
        "nl": "de het een en is met van voor op in aan bij uit naar over onder ook niet dat die dit te zijn als of door hun huis man vrouw "
        "foto",
        "sv": "och en ett är med för på i av till från den det de som att om under över vid inte hus bild kvinna",
        "da": "og en et er med for på i af til fra den det de som at om under over ved ikke hus billede mand kvinde",
        "pl": "i w na z do nie jest się o od po za dla przez pod nad przy jak ten ta to dom zdjęcie kobieta mężczyzna ze",
        "cs": "a v na s z do je se o od po za pro pod nad při jak ten ta to dům žena muž ve u",
        "tr": "ve bir bu ile için de da çok en olan gibi kadar üzerinde altında yanında ev adam kadın resim fotoğraf",
        "ro": "și un o este cu pentru pe în la din de lângă sub peste cum mai sau casa bărbat femeie",
        "hu": "a az és egy van nem hogy is egyik vagy mint ház férfi nő kép alatt felett mellett",
        "fi": "ja on ei se että joka tämä kuin talo mies nainen kuva kanssa alla yllä vieressä",
        "id": "dan di yang dengan untuk dari ini itu pada ke adalah seorang sebuah di atas bawah dekat rumah gambar foto pria wanita",
        "vi": "và của một là với cho trong trên ở được có không những các này người đàn ông phụ nữ nhà bên dưới cạnh",
    }.items()
}

LETTERS: dict[str, str] = {
    "de": "ßäöü",
    "fr": "œçèêëîïûù",
    "es": "ñ¿¡",
    "pt": "ãõ",
    "sv": "åäö",
    "da": "æøå",
    "pl": "łąęśćżźń",
    "cs": "řěůčžšď",
    "tr": "ğışç",
    "ro": "țșăâ",
    "hu": "őűöü",
    "fi": "äö",
    "vi": "ơưđạảấầẩẫậắằẳẵặẹẻẽếềểễệịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
}
"""Letters that a language writes and few others do."""

SCRIPTS: dict[str, str] = {
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
    "THAI": "th",
    "HEBREW": "he",
    "GREEK": "el",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "TELUGU": "te",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
}
"""Scripts, as Unicode's letter names begin, that mostly write one language."""

WITHIN_SCRIPT: dict[str, dict[str, str]] = {
    "CYRILLIC": {"uk": "іїєґ", "bg": "ъ"},
    "ARABIC": {"ur": "ٹڈڑںے", "fa": "پچژگ"},
}
"""Of scripts that write several languages: letters that one of them alone has, looked for in this order. `bg` only without ы, э and ё."""
RUSSIAN = "ыэё"

UNDETERMINED = "und"
"""Nothing tells the language (its code in ISO 639-3): no letters, or Latin ones without a word of STOP_WORDS."""
LANGUAGES: tuple[str, ...] = tuple(
    sorted({*STOP_WORDS, *SCRIPTS.values(), *(language for letters in WITHIN_SCRIPT.values() for language in letters), UNDETERMINED})
)
