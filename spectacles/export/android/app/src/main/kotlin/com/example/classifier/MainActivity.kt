package com.example.classifier

import android.app.Activity
import android.content.Intent
import android.graphics.ImageDecoder
import android.os.Bundle
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import kotlin.concurrent.thread

/** One button: choose a photo, read the answer. */
class MainActivity : Activity() {
    private val classifier by lazy { Classifier(this) }
    private lateinit var answer: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        answer = TextView(this)
        val choose = Button(this).apply {
            text = "Choose a photo"
            setOnClickListener {
                @Suppress("DEPRECATION")
                startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT).setType("image/*"), CHOOSE)
            }
        }
        setContentView(LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            addView(choose)
            addView(answer)
        })
    }

    @Deprecated("Deprecated in Java")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val address = data?.data ?: return
        thread {
            val probabilities = classifier.probabilities(ImageDecoder.createSource(contentResolver, address))
            val lines = probabilities.entries.sortedByDescending { it.value }.map { "%s %.1f %%".format(it.key, 100 * it.value) }
            runOnUiThread { answer.text = lines.joinToString("\n") }
        }
    }

    private companion object {
        const val CHOOSE = 1
    }
}
